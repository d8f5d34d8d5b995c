"""Load and verify a run directory. Any fault becomes one sentence."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detcheck import targets
from detcheck.errors import RunDirectoryError, UsageError
from detcheck.experiment import Experiment
from detcheck.grid import Condition, conditions
from detcheck.rundir.columns import load_completions, load_variants
from detcheck.rundir.files import is_sealed, parse
from detcheck.rundir.records import (
    COMPLETIONS_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    VARIANTS_FILE,
    ConditionRecord,
    Run,
    RunDocument,
)
from detcheck.targets import Target


def load(path: str | os.PathLike[str]) -> Run:
    """Load and verify a run directory.

    Raises RunDirectoryError, in one sentence, if it is missing, truncated, of another schema, or
    does not match its own seals and fingerprints.
    """
    folder = Path(path)
    document = read_run_file(folder)
    try:
        return _load(folder, document)
    except RunDirectoryError:
        raise
    except (KeyError, ValueError, UsageError) as error:
        raise _malformed(folder, error) from error


def _load(folder: Path, document: RunDocument) -> Run:
    target = targets.from_dict(document.target)
    _check_grid(document.conditions, document.experiment, target)
    variants = load_variants(
        folder / VARIANTS_FILE,
        document.files[VARIANTS_FILE],
        len(document.experiment.prompts),
    )
    return Run(
        path=folder,
        run_id=document.run_id,
        detcheck_version=document.detcheck_version,
        experiment=document.experiment,
        target=target,
        traits=document.traits,
        model=document.model,
        environment=document.environment,
        conditions=document.conditions,
        proofs=document.proofs,
        variants=variants,
        completions=load_completions(
            folder / COMPLETIONS_FILE,
            document.files[COMPLETIONS_FILE],
            variants,
            document.conditions,
        ),
        created=document.created,
        finished=document.finished,
        summary=document.summary,
        endpoint_checks=document.endpoint_checks,
        budget_s=document.budget_s,
    )


def read_run_file(folder: Path) -> RunDocument:
    """`run.json` of a run directory, its own seal checked.

    Raises RunDirectoryError if it is missing, damaged, changed, or of another schema.
    """
    if not folder.is_dir():
        raise RunDirectoryError(f"There is no run directory {folder}: check the path.")
    file = folder / RUN_FILE
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{folder} holds no {RUN_FILE}: it is not a run directory."
        ) from error
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be read ({error.strerror}).") from error
    _check_version(file, data)
    if not is_sealed(data):
        raise RunDirectoryError(f"{file} was changed after it was written: run it again.")
    try:
        document: RunDocument = parse(data, RunDocument)
    except (ValueError, UsageError) as error:
        raise _malformed(folder, error) from error
    return document


def _check_version(file: Path, data: bytes) -> None:
    try:
        document = parse(data, Any)
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
    if version < SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{file} has schema {version}, older than this detcheck reads ({SCHEMA_VERSION}): "
            "measure it again."
        )


def _malformed(folder: Path, error: Exception) -> RunDirectoryError:
    reason = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
    return RunDirectoryError(
        f"{folder / RUN_FILE} is not a run that detcheck wrote ({reason}): run it again."
    )


def _check_grid(records: Sequence[ConditionRecord], experiment: Experiment, target: Target) -> None:
    """Each cell of the declared grid is recorded once. How completions are shared may differ."""
    if Counter(map(_cell, records)) != Counter(map(_cell, conditions(experiment, target))):
        raise ValueError("its conditions are not those of its experiment")


def _cell(condition: Condition | ConditionRecord) -> tuple[int, str, int, str, int, int]:
    return (
        condition.prompt_index,
        condition.kernels,
        condition.batch_size,
        condition.placement,
        condition.seed,
        condition.choice,
    )
