"""The run directory: appended trial by trial, verified on load, resumable after `kill -9`.

    run.json            experiment, environment, conditions, proof of kernels, seals of the files
    completions.jsonl   one line a completion
    variants.jsonl      one line a distinct (prompt, fingerprint), written when it is first seen

A trial is committed in three steps: its lines are appended and flushed to disk, the seals (length
and running SHA-256 of both files) are updated, and `run.json` is replaced atomically. Bytes past a
seal belong to a trial that was never committed: loading ignores them, resuming cuts them off.
Anything else that does not match its seal, or a variant whose fingerprint is not the hash of its
own tokens, was changed afterwards and is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from detcheck.completion import Completion, fingerprint_text, fingerprint_token_ids
from detcheck.errors import RunDirectoryError, StorageError, UsageError
from detcheck.experiment import Condition, Experiment

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
COMPLETIONS_FILE = "completions.jsonl"
VARIANTS_FILE = "variants.jsonl"

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


@dataclass(slots=True)
class ConditionRecord:
    """What happened to one condition; kept in `run.json`."""

    condition_id: str
    prompt_index: int
    kernels: str
    batch_size: int
    asked: int
    """Completions asked for."""
    status: str = "pending"
    """`pending`, `running`, `done`, `failed` (see `error`)."""
    trials: int = 0
    completed: int = 0
    """Completions that came back."""
    failed: int = 0
    """Requests that came back as errors."""
    generated_tokens: int = 0
    """Tokens generated, fillers included."""
    elapsed_s: float = 0.0
    rows_max: int = 0
    """Most requests that were seen to share a forward pass; 0 where batches were not observed."""
    error: str | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens a second, fillers included; None before anything was timed."""
        return self.generated_tokens / self.elapsed_s if self.elapsed_s > 0 else None


@dataclass(frozen=True, slots=True)
class KernelsProof:
    """Evidence that a kernels setting was in force: what was overridden and seen to run."""

    kernels: str
    overrides: dict[str, int]
    """Calls each override served, by op name; one with 0 calls was installed but never ran."""
    missing: tuple[str, ...] = ()
    """Overrides that were asked for and did not take effect."""
    self_check: str | None = None
    """`passed`, or what the mode's own check found wrong; None where there is none (stock)."""

    @property
    def complete(self) -> bool:
        """Whether every override asked for was seen to run and the self-check passed."""
        return not self.missing and self.self_check in (None, "passed")


@dataclass(frozen=True, slots=True)
class StoredVariant:
    """One distinct answer to one prompt. Arrays are (tokens,)."""

    prompt_index: int
    fingerprint: str
    text: str
    token_ids: Int32Array | None
    token_ends: Int32Array | None
    """Length of `text` once each token is decoded."""
    runner_up_token_ids: Int32Array | None
    gaps: Float32Array | None
    """Best minus second-best logit at each position, from the completion that was seen first."""

    def __len__(self) -> int:
        return len(self.text) if self.token_ids is None else len(self.token_ids)

    def piece(self, start: int, stop: int) -> str:
        """Text of units `start` up to `stop` (tokens, or characters where there are no tokens)."""
        if self.token_ids is None:
            return self.text[start:stop]
        if self.token_ends is None or stop <= start or start >= len(self.token_ends):
            return ""
        begin = int(self.token_ends[start - 1]) if start > 0 else 0
        return self.text[begin : int(self.token_ends[min(stop, len(self.token_ends)) - 1])]


@dataclass(frozen=True, slots=True)
class CompletionTable:
    """All completions of a run as columns; row i of each belongs to the i-th recorded request."""

    condition: Int32Array
    """Index into `Run.conditions`."""
    trial: Int32Array
    request: Int32Array
    """Position of the request within its trial."""
    variant: Int32Array
    """Index into `Run.variants`; -1 where the request failed."""
    rows_max: Int32Array
    """Most requests that shared one of its forward passes; 0 where batches were not observed."""
    rows_mean: Float32Array
    query_tokens_max: Int32Array
    noise: Float32Array
    """Largest change of the gap between the two best logits, against the prompt's reference, over
    the positions before the first divergence; NaN where it was not measured."""
    digest: Int32Array
    """Code of the log-probability digest: equal codes are bitwise equal; -1 where none."""

    def __len__(self) -> int:
        return len(self.condition)


@dataclass(frozen=True, slots=True)
class Run:
    """A run as loaded and verified."""

    path: Path
    run_id: str
    detcheck_version: str
    experiment: Experiment
    environment: Mapping[str, Any]
    conditions: tuple[ConditionRecord, ...]
    proofs: Mapping[str, KernelsProof]
    """By kernels setting."""
    variants: tuple[StoredVariant, ...]
    completions: CompletionTable
    created: str
    finished: str | None
    """UTC, ISO 8601; None where the run was interrupted or is still going on."""
    summary: tuple[Mapping[str, Any], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every condition was measured to its end."""
        return all(record.status == "done" for record in self.conditions)


@dataclass(slots=True)
class _Seal:
    """Length and running hash of a file up to the last committed trial."""

    size: int = 0
    hasher: Any = field(default_factory=hashlib.sha256)

    def update(self, data: bytes) -> None:
        self.size += len(data)
        self.hasher.update(data)

    def to_dict(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self.hasher.hexdigest()}


@dataclass(frozen=True, slots=True)
class _ReferenceTrace:
    """Gaps of the first completion of a prompt: what noise is measured against."""

    units: Sequence[int]
    gaps: npt.NDArray[np.float64]


class RunWriter:
    """Writes one run directory, a trial at a time. Use `create` or `resume`, then `close`."""

    def __init__(self, path: Path, document: dict[str, Any], records: list[ConditionRecord]):
        self.path = path
        self.records = records
        self._document = document
        self._known: set[tuple[int, str]] = set()
        self._seals = {COMPLETIONS_FILE: _Seal(), VARIANTS_FILE: _Seal()}
        self._references: dict[tuple[int, str], _ReferenceTrace] = {}
        self._files: dict[str, BinaryIO] = {}

    @classmethod
    def create(
        cls,
        path: Path,
        experiment: Experiment,
        environment: Mapping[str, Any],
        *,
        run_id: str,
        version: str,
        created: str,
    ) -> RunWriter:
        """Start a new run in `path`, which must not exist or be an empty folder."""
        _prepare_folder(path)
        records = [_record(condition) for condition in experiment.conditions()]
        document = {
            "schema_version": SCHEMA_VERSION,
            "detcheck_version": version,
            "run_id": run_id,
            "created": created,
            "finished": None,
            "experiment": experiment.to_dict(),
            "environment": dict(environment),
            "proofs": {},
            "summary": [],
        }
        writer = cls(path, document, records)
        try:
            for name in writer._seals:
                writer._files[name] = (path / name).open("xb")
            writer._replace_run_file()
        except OSError as error:
            raise _storage_error(path, error) from error
        return writer

    @classmethod
    def resume(cls, path: Path) -> tuple[RunWriter, Run]:
        """Go on with the run in `path`: verify it, cut off what was not committed, append after."""
        run = load(path)
        document = _read_run_file(path)
        writer = cls(path, document, list(run.conditions))
        document["finished"] = None
        try:
            for name, seal in writer._seals.items():
                file = (path / name).open("r+b")
                writer._files[name] = file
                seal.update(file.read(document["files"][name]["bytes"]))
                file.truncate()
        except OSError as error:
            raise _storage_error(path, error) from error
        writer._known = {(v.prompt_index, v.fingerprint) for v in run.variants}
        writer._restore_references(run)
        return writer, run

    def append_trial(
        self,
        condition_index: int,
        trial: int,
        completions: Iterable[tuple[int, Completion]],
        *,
        elapsed_s: float,
        generated_tokens: int,
    ) -> None:
        """Commit one trial: `completions` are (position in the trial, completion) pairs.

        Raises StorageError where the disk is full or gone; trials before this one are safe.
        """
        record = self.records[condition_index]
        lines: list[bytes] = []
        variant_lines: list[bytes] = []
        for request, completion in completions:
            lines.append(self._completion_line(condition_index, trial, request, completion))
            key = (record.prompt_index, completion.fingerprint)
            if not completion.failed and key not in self._known:
                self._known.add(key)
                variant_lines.append(_variant_line(record.prompt_index, completion))
            record.failed += completion.failed
            record.completed += not completion.failed
            if completion.observed_batch is not None:
                record.rows_max = max(record.rows_max, completion.observed_batch.rows_max)
        record.trials += 1
        record.elapsed_s += elapsed_s
        record.generated_tokens += generated_tokens
        try:
            self._append(VARIANTS_FILE, variant_lines)
            self._append(COMPLETIONS_FILE, lines)
            self._replace_run_file()
        except OSError as error:
            raise _storage_error(self.path, error) from error

    def set_status(self, condition_index: int, status: str, error: str | None = None) -> None:
        """Record where a condition stands; on disk with the next `save` or trial."""
        self.records[condition_index].status = status
        self.records[condition_index].error = error

    def set_proof(self, proof: KernelsProof) -> None:
        """Record what was seen of a kernels setting; on disk with the next `save` or trial."""
        self._document["proofs"][proof.kernels] = asdict(proof)

    def save(self) -> None:
        """Replace `run.json` with the state now."""
        try:
            self._replace_run_file()
        except OSError as error:
            raise _storage_error(self.path, error) from error

    def finish(self, summary: Sequence[Mapping[str, Any]], finished: str | None) -> None:
        """Write the summary and the time of the end (None: interrupted)."""
        self._document["summary"] = list(summary)
        self._document["finished"] = finished
        self.save()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        for file in self._files.values():
            file.close()

    def distinct(self, prompt_index: int) -> int:
        """Variants of one prompt so far, whatever the kernels."""
        return sum(known_prompt == prompt_index for known_prompt, _ in self._known)

    def _completion_line(
        self, condition_index: int, trial: int, request: int, completion: Completion
    ) -> bytes:
        line: dict[str, Any] = {
            "condition": condition_index,
            "trial": trial,
            "request": request,
            "fingerprint": None if completion.failed else completion.fingerprint,
            "finish_reason": completion.finish_reason,
        }
        if completion.failed:
            line["error"] = completion.error
        if completion.observed_batch is not None:
            line["observed_batch"] = asdict(completion.observed_batch)
        if completion.top_two is not None:
            line["logprob_digest"] = completion.logprob_digest
            line["noise"] = self._noise(condition_index, completion)
        return _dump(line)

    def _noise(self, condition_index: int, completion: Completion) -> float:
        """Largest change of the top-two gap against the reference, before they part."""
        record = self.records[condition_index]
        assert completion.top_two is not None
        units = completion.token_ids or ()
        gaps = np.asarray(completion.top_two.gaps, dtype=np.float64)
        key = (record.prompt_index, record.kernels)
        reference = self._references.setdefault(key, _ReferenceTrace(units, gaps))
        shared = _shared_prefix(units, reference.units)
        if shared == 0:
            return 0.0
        return float(np.abs(gaps[:shared] - reference.gaps[:shared]).max())

    def _restore_references(self, run: Run) -> None:
        """The reference of a (prompt, kernels) is its first completion, whose variant is stored."""
        table = run.completions
        for row in range(len(table)):
            record = run.conditions[table.condition[row]]
            key = (record.prompt_index, record.kernels)
            index = int(table.variant[row])
            if key in self._references or index < 0:
                continue
            variant = run.variants[index]
            if variant.gaps is not None and variant.token_ids is not None:
                gaps = variant.gaps.astype(np.float64)
                self._references[key] = _ReferenceTrace(variant.token_ids.tolist(), gaps)

    def _append(self, name: str, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        data = b"".join(lines)
        file = self._files[name]
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        self._seals[name].update(data)

    def _replace_run_file(self) -> None:
        document = self._document | {
            "conditions": [asdict(record) for record in self.records],
            "files": {name: seal.to_dict() for name, seal in self._seals.items()},
        }
        temporary = self.path / (RUN_FILE + ".tmp")
        with temporary.open("wb") as file:
            file.write(orjson.dumps(document, option=orjson.OPT_INDENT_2))
            file.write(b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / RUN_FILE)


def load(path: str | os.PathLike[str]) -> Run:
    """Load and verify a run directory.

    Raises RunDirectoryError, in one sentence, where it is missing, truncated, from a newer
    schema, or does not match its own seals and fingerprints.
    """
    folder = Path(path)
    document = _read_run_file(folder)
    try:
        experiment = Experiment.from_dict(document["experiment"])
        records = tuple(ConditionRecord(**record) for record in document["conditions"])
        proofs = {name: _proof(data) for name, data in document["proofs"].items()}
        variants = _load_variants(folder, document["files"][VARIANTS_FILE])
        table = _load_completions(folder, document["files"][COMPLETIONS_FILE], variants, records)
        return Run(
            path=folder,
            run_id=document["run_id"],
            detcheck_version=document["detcheck_version"],
            experiment=experiment,
            environment=document["environment"],
            conditions=records,
            proofs=proofs,
            variants=variants,
            completions=table,
            created=document["created"],
            finished=document["finished"],
            summary=tuple(document["summary"]),
        )
    except (KeyError, TypeError, UsageError, AttributeError) as error:
        if isinstance(error, RunDirectoryError):
            raise
        raise RunDirectoryError(
            f"{folder / RUN_FILE} is not a run that detcheck wrote ({error}): run it again."
        ) from error


def _record(condition: Condition) -> ConditionRecord:
    return ConditionRecord(
        condition_id=condition.condition_id,
        prompt_index=condition.prompt_index,
        kernels=condition.kernels,
        batch_size=condition.batch_size,
        asked=condition.completions,
    )


def _proof(data: Mapping[str, Any]) -> KernelsProof:
    return KernelsProof(**{**data, "missing": tuple(data["missing"])})


def _prepare_folder(path: Path) -> None:
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunDirectoryError(
                f"{path} is not empty: choose another --out, or go on with it by --resume {path}."
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunDirectoryError(
            f"{path} cannot be written ({reason}): choose another --out."
        ) from error


def _storage_error(path: Path, error: OSError) -> StorageError:
    reason = (error.strerror or str(error)).lower()
    return StorageError(
        f"Writing to {path} failed ({reason}); the trials before are kept: make room, then go on "
        f"with --resume {path}."
    )


def _read_run_file(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise RunDirectoryError(f"There is no run directory {folder}: check the path.")
    file = folder / RUN_FILE
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{folder} holds no {RUN_FILE}: it is not a run directory."
        ) from error
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise RunDirectoryError(f"{file} is not valid JSON ({error}): it was damaged.") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int):
        raise RunDirectoryError(f"{file} names no schema_version: detcheck did not write it.")
    if version > SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{file} has schema {version}, newer than this detcheck reads ({SCHEMA_VERSION}): "
            "upgrade detcheck."
        )
    return document


def _sealed_lines(folder: Path, name: str, seal: Mapping[str, Any]) -> Iterable[bytes]:
    """Lines up to the seal; raises at the end where the bytes are not those that were sealed."""
    path = folder / name
    hasher = hashlib.sha256()
    left = int(seal["bytes"])
    try:
        with path.open("rb") as file:
            for line in file:
                if left <= 0:
                    break
                left -= len(line)
                hasher.update(line)
                yield line
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path} is missing: the run directory is incomplete.") from error
    if left > 0:
        raise RunDirectoryError(f"{path} is truncated: {left} bytes of committed trials are gone.")
    if left < 0 or hasher.hexdigest() != seal["sha256"]:
        raise RunDirectoryError(f"{path} was changed after it was written: run it again.")


def _load_variants(folder: Path, seal: Mapping[str, Any]) -> tuple[StoredVariant, ...]:
    variants: list[StoredVariant] = []
    path = folder / VARIANTS_FILE
    for number, line in enumerate(_sealed_lines(folder, VARIANTS_FILE, seal), start=1):
        try:
            data = orjson.loads(line)
            variant = StoredVariant(
                prompt_index=data["prompt_index"],
                fingerprint=data["fingerprint"],
                text=data["text"],
                token_ids=_int32(data.get("token_ids")),
                token_ends=_int32(data.get("token_ends")),
                runner_up_token_ids=_int32(data.get("runner_up_token_ids")),
                gaps=_float32(data.get("gaps")),
            )
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise RunDirectoryError(f"{path} is damaged at line {number}.") from error
        if variant.fingerprint != _fingerprint(variant):
            raise RunDirectoryError(
                f"{path} was edited: the fingerprint at line {number} does not match its tokens."
            )
        variants.append(variant)
    return tuple(variants)


def _fingerprint(variant: StoredVariant) -> str:
    if variant.token_ids is None:
        return fingerprint_text(variant.text)
    return fingerprint_token_ids(variant.token_ids)  # type: ignore[arg-type]


def _load_completions(
    folder: Path,
    seal: Mapping[str, Any],
    variants: Sequence[StoredVariant],
    records: Sequence[ConditionRecord],
) -> CompletionTable:
    """Read completions into columns: plain arrays, since there may be millions of them."""
    index = {(v.prompt_index, v.fingerprint): number for number, v in enumerate(variants)}
    prompt_of = [record.prompt_index for record in records]
    digests: dict[str, int] = {}
    ints = {name: array("i") for name in _INT_COLUMNS}
    rows_mean, noise = array("f"), array("f")
    condition, trial, request, variant, rows_max, query_tokens, digest = ints.values()
    path = folder / COMPLETIONS_FILE
    number = 0
    for number, line in enumerate(_sealed_lines(folder, COMPLETIONS_FILE, seal), start=1):
        try:
            data = orjson.loads(line)
            fingerprint = data["fingerprint"]
            observed = data.get("observed_batch")
            code = data.get("logprob_digest")
            condition.append(data["condition"])
            trial.append(data["trial"])
            request.append(data["request"])
            variant.append(
                -1
                if fingerprint is None
                else index[prompt_of[data["condition"]], fingerprint]
            )
            rows_max.append(observed["rows_max"] if observed else 0)
            query_tokens.append(observed["query_tokens_max"] if observed else 0)
            rows_mean.append(observed["rows_mean"] if observed else 0.0)
            digest.append(-1 if code is None else digests.setdefault(code, len(digests)))
            noise.append(data.get("noise", float("nan")))
        except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            raise RunDirectoryError(f"{path} is damaged at line {number}.") from error
    recorded = sum(record.completed + record.failed for record in records)
    if number != recorded:
        raise RunDirectoryError(
            f"{path} holds {number} completions where {RUN_FILE} records {recorded}: it was edited."
        )
    columns = {name: np.frombuffer(column, dtype=np.int32) for name, column in ints.items()}
    return CompletionTable(
        **columns,
        rows_mean=np.frombuffer(rows_mean, dtype=np.float32),
        noise=np.frombuffer(noise, dtype=np.float32),
    )


_INT_COLUMNS = (
    "condition",
    "trial",
    "request",
    "variant",
    "rows_max",
    "query_tokens_max",
    "digest",
)


def _variant_line(prompt_index: int, completion: Completion) -> bytes:
    line: dict[str, Any] = {
        "prompt_index": prompt_index,
        "fingerprint": completion.fingerprint,
        "text": completion.text,
    }
    if completion.token_ids is not None:
        line["token_ids"] = completion.token_ids
    if completion.token_ends is not None:
        line["token_ends"] = completion.token_ends
    if completion.top_two is not None:
        line["runner_up_token_ids"] = completion.top_two.runner_up_token_ids
        line["gaps"] = completion.top_two.gaps
    return _dump(line)


def _dump(line: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # text with a lone surrogate, from an untrusted server
        return json.dumps(line).encode("ascii") + b"\n"


def _shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading units two sequences share."""
    shared = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:shared]) != np.asarray(b[:shared]))
    return int(differ[0]) if len(differ) else shared


def _int32(values: Sequence[int] | None) -> Int32Array | None:
    return None if values is None else np.asarray(values, dtype=np.int32)


def _float32(values: Sequence[float] | None) -> Float32Array | None:
    return None if values is None else np.asarray(values, dtype=np.float32)
