"""Load and verify a run directory. Whatever is wrong with it becomes one sentence."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from detcheck.errors import RunDirectoryError, UsageError
from detcheck.experiment import Condition, Experiment
from detcheck.rundir.columns import load_completions, load_variants
from detcheck.rundir.files import is_sealed
from detcheck.rundir.records import (
    COMPLETIONS_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    VARIANTS_FILE,
    ConditionRecord,
    EndpointCheck,
    KernelsProof,
    Run,
)

_RECORD_TYPES: dict[str, tuple[type, ...]] = {
    "condition_id": (str,),
    "prompt_index": (int,),
    "kernels": (str,),
    "batch_size": (int,),
    "asked": (int,),
    "status": (str,),
    "trials": (int,),
    "completed": (int,),
    "failed": (int,),
    "generated_tokens": (int,),
    "elapsed_s": (int, float),
    "rows_max": (int,),
    "error": (str, NoneType),
    "placement": (str,),
    "evidence_source": (str,),
    "rows_mean": (int, float, NoneType),
    "preemptions": (int, NoneType),
    "prefix_cache_hits": (int, NoneType),
    "failures": (dict,),
    "retries": (int,),
}


def load(path: str | os.PathLike[str]) -> Run:
    """Load and verify a run directory.

    Raises RunDirectoryError, in one sentence, where it is missing, truncated, from a newer
    schema, or does not match its own seals and fingerprints.
    """
    folder = Path(path)
    document = read_run_file(folder)
    try:
        return _load(folder, document)
    except RunDirectoryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise RunDirectoryError(
            f"{folder / RUN_FILE} is not a run that detcheck wrote ({reason}): run it again."
        ) from error


def _load(folder: Path, document: dict[str, Any]) -> Run:
    experiment = _experiment(document["experiment"])
    records = tuple(_record(data) for data in document["conditions"])
    _check_grid(records, experiment)
    seals = document["files"]
    variants = load_variants(folder / VARIANTS_FILE, seals[VARIANTS_FILE], len(experiment.prompts))
    return Run(
        path=folder,
        run_id=_text(document, "run_id"),
        detcheck_version=_text(document, "detcheck_version"),
        experiment=experiment,
        environment=dict(document["environment"]),
        conditions=records,
        proofs={name: _proof(data) for name, data in document["proofs"].items()},
        variants=variants,
        completions=load_completions(
            folder / COMPLETIONS_FILE, seals[COMPLETIONS_FILE], variants, records
        ),
        created=_text(document, "created"),
        finished=None if document["finished"] is None else _text(document, "finished"),
        summary=tuple(dict(row) for row in document["summary"]),
        endpoint_checks=tuple(map(_endpoint_check, document.get("endpoint_checks", ()))),
    )


def read_run_file(folder: Path) -> dict[str, Any]:
    """`run.json` as plain data, its own seal checked and taken off.

    Raises RunDirectoryError where it is missing, damaged, changed, or from a newer schema.
    """
    if not folder.is_dir():
        raise RunDirectoryError(f"There is no run directory {folder}: check the path.")
    file = folder / RUN_FILE
    try:
        data = file.read_bytes()
        document = json.loads(data)
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"{folder} holds no {RUN_FILE}: it is not a run directory."
        ) from error
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{file} is not valid JSON ({error}): it was damaged.") from error
    _check_version(file, document)
    if not is_sealed(data):
        raise RunDirectoryError(f"{file} was changed after it was written: run it again.")
    document.pop("seal", None)
    return dict(document)


def _check_version(file: Path, document: Any) -> None:
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int):
        raise RunDirectoryError(f"{file} names no schema_version: detcheck did not write it.")
    if version > SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{file} has schema {version}, newer than this detcheck reads ({SCHEMA_VERSION}): "
            "upgrade detcheck."
        )


def _experiment(data: Mapping[str, Any]) -> Experiment:
    experiment = Experiment.from_dict(data)
    numbers = (*experiment.batch_sizes, experiment.completions, experiment.max_new_tokens)
    texts = (*experiment.prompts, *experiment.kernels)
    if not all(type(number) is int for number in numbers):
        raise TypeError("the experiment holds something else than a whole number")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("the experiment holds something else than text")
    return experiment


def _record(data: Mapping[str, Any]) -> ConditionRecord:
    record = ConditionRecord(**data)
    for name, types in _RECORD_TYPES.items():
        if not isinstance(getattr(record, name), types):
            raise TypeError(f"{name} of a condition has a wrong type")
    if not all(type(number) is int and number >= 0 for number in record.failures.values()):
        raise TypeError("failures of a condition has a wrong type")
    return record


def _check_grid(records: Sequence[ConditionRecord], experiment: Experiment) -> None:
    """Each cell of the declared grid is recorded once. How completions are shared may differ."""
    grid = Counter(map(_cell, experiment.conditions()))
    if Counter(map(_cell, records)) != grid:
        raise ValueError("its conditions are not those of its experiment")


def _cell(condition: Condition | ConditionRecord) -> tuple[int, str, int, str]:
    return (
        condition.prompt_index,
        condition.kernels,
        condition.batch_size,
        condition.placement,
    )


def _endpoint_check(data: Mapping[str, Any]) -> EndpointCheck:
    check = EndpointCheck(**data)
    if not all(isinstance(text, str) for text in (check.name, check.sentence, check.placement)):
        raise TypeError("an endpoint check holds something else than text")
    if check.holds not in (True, False, None) or not isinstance(check.decisive, bool):
        raise TypeError("an endpoint check is neither true nor false")
    return check


def _proof(data: Mapping[str, Any]) -> KernelsProof:
    return KernelsProof(**{**data, "missing": tuple(data["missing"])})


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not text")
    return value
