"""Write a run directory, a trial at a time, so that `kill -9` loses at most the trial in flight.

`run.json` grows with the grid. If it is large, it is not replaced after each trial but at most
every few seconds, and `kill -9` loses the trials since. Nothing else does: Ctrl-C, an error and a
full disk save them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from detcheck.completion import Completion
from detcheck.evidence import EndpointCheck, KernelsProof, LoadEvidence, ModelIdentity
from detcheck.experiment import Experiment
from detcheck.grid import Condition, conditions
from detcheck.rundir import folder
from detcheck.rundir.files import (
    Seal,
    dump_sealed,
    parse,
    replace_file,
    sealed_blocks,
)
from detcheck.rundir.reader import load, read_run_file
from detcheck.rundir.records import (
    COMPLETIONS_FILE,
    RUN_FILE,
    VARIANTS_FILE,
    CompletionLine,
    ConditionRecord,
    Run,
    RunDocument,
    Status,
)
from detcheck.rundir.trial import ReferenceTrace, TrialLines
from detcheck.targets.base import Target

SMALL_BYTES = 1 << 18
"""A `run.json` of at most this size (some 400 conditions) is replaced after every trial."""
BYTES_A_SECOND = 2e6
"""A larger one is replaced so often that no more than this is written."""
REFERENCE_MEMBER = b'"reference_gaps"'
ReferenceKey = tuple[int, str, int, int]
"""(prompt index, kernels, seed, choice)."""


class RunWriter:
    """Writes one run directory, a trial at a time. Use `create` or `resume`, then `close`.

    Until it is closed no other process can write to the directory; anyone may read.
    """

    def __init__(self, path: Path, document: RunDocument, records: list[ConditionRecord]):
        self.path = path
        self.records = records
        self._document = document
        self._known: dict[int, set[str]] = {}
        self._seals = {VARIANTS_FILE: Seal(), COMPLETIONS_FILE: Seal()}
        self._references: dict[ReferenceKey, ReferenceTrace] = {}
        self._files: dict[str, FileIO] = {}
        self._unsynced: set[str] = set()
        """Files that the disk may not have in full yet."""
        self._saved_bytes = 0
        self._saved_at = 0.0
        self._is_saved = True
        """False if trials are committed that `run.json` does not seal yet."""

    @classmethod
    def create(
        cls,
        path: Path,
        experiment: Experiment,
        target: Target,
        environment: Mapping[str, Any],
        *,
        run_id: str,
        version: str,
        created: str,
        model: ModelIdentity | None = None,
    ) -> RunWriter:
        """Start a new run in `path`, which must not exist or be an empty folder."""
        folder.prepare(path)
        records = [_record(condition) for condition in conditions(experiment, target)]
        document = RunDocument(
            detcheck_version=version,
            run_id=run_id,
            created=created,
            experiment=experiment,
            target=target.to_dict(),
            traits=target.traits,
            model=model or ModelIdentity(),
            environment=dict(environment),
        )
        writer = cls(path, document, records)
        with writer._starting():
            writer._open("xb")
            folder.lock(path, writer._files[COMPLETIONS_FILE])
            writer._replace_run_file(records, writer._seals)
        return writer

    @classmethod
    def resume(cls, path: Path) -> tuple[RunWriter, Run]:
        """Go on with the run in `path`: verify it and cut off bytes of uncommitted trials.

        Raises RunDirectoryError also if another process is writing to it.
        """
        document = read_run_file(path)
        run = load(path)
        writer = cls(path, document, list(run.conditions))
        with writer._starting():
            writer._open("r+b")
            folder.lock(path, writer._files[COMPLETIONS_FILE])
            if read_run_file(path) != document:  # another process has written since it was verified
                raise folder.in_use(path)
            document.finished = None
            for variant in run.variants:
                writer._known.setdefault(variant.prompt_index, set()).add(variant.fingerprint)
            writer._restore(run)
            for name in writer._files:
                writer._cut(name)
        return writer, run

    def append_trial(
        self,
        condition_index: int,
        trial: int,
        completions: Iterable[tuple[int, Completion]],
        *,
        elapsed_s: float,
        generated_tokens: int,
        load: LoadEvidence | None = None,
        filler_failures: Mapping[str, int] | None = None,
        retries: int = 0,
    ) -> None:
        """Commit one trial: `completions` are (position in the trial, completion) pairs.

        `load` is the evidence of its batches beyond what each completion holds of its own.

        Raises StorageError if the disk is full or gone. Then the trials before this one are safe,
        and nothing of this one is kept.
        """
        record = replace(self.records[condition_index])
        record.failures = dict(record.failures)  # a trial that is not committed leaves no trace
        lines = TrialLines(
            condition_index,
            trial,
            record,
            known=self._known.setdefault(record.prompt_index, set()),
            reference=self._references.get(_reference_key(record)),
            greedy=self._document.experiment.temperature == 0,
        )
        for request, completion in completions:
            lines.add(request, completion)
        lines.add_load(load, filler_failures or {}, retries)
        record.trials += 1
        record.elapsed_s += elapsed_s
        record.generated_tokens += generated_tokens
        try:
            self._commit(lines)
        except OSError as error:
            raise folder.storage_error(self.path, error) from error

    def set_status(self, condition_index: int, status: Status, error: str | None = None) -> None:
        """Record the status of a condition; on disk with the next `save` or trial."""
        self.records[condition_index].status = status
        self.records[condition_index].error = error

    def set_proof(self, proof: KernelsProof) -> None:
        """Record the proof of a kernels setting; on disk with the next `save` or trial."""
        self._document.proofs[proof.kernels] = proof

    def set_endpoint_checks(self, checks: Sequence[EndpointCheck]) -> None:
        """Record the checks of the servers; on disk with the next `save` or trial."""
        self._document.endpoint_checks = tuple(checks)

    def set_budget(self, seconds: float | None) -> None:
        """Record how long the run may take; on disk with the next `save` or trial."""
        self._document.budget_s = seconds

    def save(self, *, if_due: bool = False) -> None:
        """Replace `run.json` with the state now; with `if_due`, only if it is small or old."""
        if if_due and not self._is_due():
            self._is_saved = False
            return
        try:
            self._replace_run_file(self.records, self._seals)
        except OSError as error:
            raise folder.storage_error(self.path, error) from error

    def finish(self, summary: Sequence[Mapping[str, Any]], finished: str | None) -> None:
        """Write the summary and the time of the end (None: interrupted)."""
        self._document.summary = tuple(dict(row) for row in summary)
        self._document.finished = finished
        self.save()

    def close(self) -> None:
        """Save what is not saved yet, and close the files; safe to call twice."""
        if not self._is_saved and not any(file.closed for file in self._files.values()):
            with suppress(OSError):  # the disk is full: that was raised before
                self._replace_run_file(self.records, self._seals)
        for file in self._files.values():
            file.close()

    def distinct(self, prompt_index: int) -> int:
        """Variants of one prompt so far, whatever the kernels."""
        return len(self._known.get(prompt_index, ()))

    def _commit(self, trial: TrialLines) -> None:
        """Put a trial on disk, and only then into the state that later trials build on."""
        seals = dict(self._seals)
        for name, lines in ((VARIANTS_FILE, trial.variants), (COMPLETIONS_FILE, trial.completions)):
            if lines:
                data = b"".join(lines)
                self._append(name, data)
                seals[name] = seals[name].extended(data)
        records = list(self.records)
        records[trial.condition] = trial.record
        if self._is_due():
            self._replace_run_file(records, seals)
        else:
            self._is_saved = False
        self._seals = seals
        self.records[trial.condition] = trial.record
        self._known[trial.record.prompt_index].update(trial.fingerprints)
        if trial.reference is not None:
            self._references[_reference_key(trial.record)] = trial.reference

    def _append(self, name: str, data: bytes) -> None:
        """Write after the seal; bytes that a failed trial has left there are cut off first."""
        self._cut(name)
        self._unsynced.add(name)
        left = memoryview(data)
        while left:
            left = left[self._files[name].write(left) :]

    def _cut(self, name: str) -> None:
        self._files[name].truncate(self._seals[name].size)
        self._files[name].seek(self._seals[name].size)

    def _open(self, mode: str) -> None:
        for name in self._seals:
            # Unbuffered, so that nothing is left to be written when the disk is full.
            self._files[name] = FileIO(self.path / name, mode)

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Close the files again if the start fails."""
        try:
            yield
        except FileExistsError as error:  # another process has started here at the same time
            self.close()
            raise folder.not_empty(self.path) from error
        except OSError as error:
            self.close()
            raise folder.storage_error(self.path, error) from error
        except BaseException:
            self.close()
            raise

    def _replace_run_file(
        self, records: Sequence[ConditionRecord], seals: Mapping[str, Seal]
    ) -> None:
        document = replace(
            self._document,
            conditions=tuple(records),
            files={name: seal.record() for name, seal in seals.items()},
            seal=msgspec.UNSET,
        )
        for name in sorted(self._unsynced):  # what is sealed must be there first
            os.fsync(self._files[name].fileno())
        self._unsynced.clear()
        data = dump_sealed(document)
        replace_file(self.path / RUN_FILE, data)
        self._saved_bytes, self._saved_at, self._is_saved = len(data), monotonic(), True

    def _is_due(self) -> bool:
        """True if `run.json` may be replaced now."""
        if self._saved_bytes <= SMALL_BYTES:
            return True
        return monotonic() - self._saved_at >= self._saved_bytes / BYTES_A_SECOND

    def _restore(self, run: Run) -> None:
        """Restore the seals, and the traces that noise is measured against."""
        for name in self._seals:
            for lines in sealed_blocks(self.path / name, self._document.files[name]):
                data = b"".join(line + b"\n" for line in lines)
                self._seals[name] = self._seals[name].extended(data)
                if name == COMPLETIONS_FILE and REFERENCE_MEMBER in data:
                    self._restore_references(run, lines)

    def _restore_references(self, run: Run, lines: Iterable[bytes]) -> None:
        variants = {(v.prompt_index, v.fingerprint): v for v in run.variants}
        for line in lines:
            if REFERENCE_MEMBER not in line:
                continue
            parsed = parse(line, CompletionLine)
            if parsed.reference_gaps is not None:
                record = run.conditions[parsed.condition]
                variant = variants[record.prompt_index, parsed.fingerprint]
                gaps = np.asarray(parsed.reference_gaps, dtype=np.float64)
                self._references[_reference_key(record)] = ReferenceTrace(
                    variant.token_keys(), gaps
                )


def _reference_key(record: ConditionRecord) -> ReferenceKey:
    return record.prompt_index, record.kernels, record.seed, record.choice


def _record(condition: Condition) -> ConditionRecord:
    return ConditionRecord(
        condition_id=condition.condition_id,
        prompt_index=condition.prompt_index,
        kernels=condition.kernels,
        batch_size=condition.batch_size,
        asked=condition.completions,
        placement=condition.placement,
        seed=condition.seed,
        choice=condition.choice,
    )
