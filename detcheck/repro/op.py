"""A script of PyTorch alone that calls the differing op for a request alone and in its batch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detcheck import __version__
from detcheck.environment import collect
from detcheck.errors import MeasurementError, StorageError
from detcheck.probes.calls import CallPair
from detcheck.probes.trace_results import FirstOp, Trace
from detcheck.repro import files
from detcheck.repro.inputs import PairedInput, arguments, index_of, pair_inputs

DIFFERS = 1
"""Exit code of a script that shows a difference."""
SEEDS = 4
"""Seeds that are tried before real inputs are."""
LARGEST_CHANGE = 0.05
"""Changes beyond this share of the largest entry are no rounding."""
LONGEST_S = 600
"""Longest time that the script may take when it is tried."""
FUNCTIONS = {
    "aten.scaled_dot_product_attention.default": "torch.nn.functional.scaled_dot_product_attention"
}
"""For an op, the function that takes its arguments and that other kernels are put in place of."""


@dataclass(frozen=True, slots=True)
class _Tried:
    """A script that has shown the difference."""

    script: str
    saved: bool
    """If true, it loads inputs from a file."""
    printed: str


def write_op(found: Trace, calls: CallPair | None, folder: Path, model: str | None) -> list[Path]:
    """Write the script of a trace's first op, its inputs if needed, environment and issue text.

    The script is run in a process of its own first: with inputs of a few seeds, then with the real
    inputs but seeded weights, then with everything real. The first that shows the difference is
    written. Returns the paths. Raises MeasurementError, and writes nothing, if no op differs or no
    script shows the difference; StorageError if the folder cannot be written.
    """
    if found.first is None:
        raise MeasurementError(
            f"No op differs under {found.kernels} kernels, so there is nothing to recreate: trace "
            "a run whose answers diverge, or a larger batch."
        )
    if calls is None:
        raise MeasurementError(
            f"The calls of {found.first.op} could not be kept, so no script can recreate them."
        )
    inputs = pair_inputs(calls)
    environment = collect(calls.batch.device)
    with tempfile.TemporaryDirectory() as scratch:
        tried = _first_that_shows(found.first, calls, inputs, environment, Path(scratch), model)
        flipped = found.flip.flipped
        contents = {
            files.SCRIPT: tried.script,
            files.ENVIRONMENT: files.environment_text(environment),
            files.ISSUE: _issue(found.first, tried, environment, model, flipped=flipped),
        }
        paths = files.write(folder, contents)
        if tried.saved:
            paths.append(_copy(Path(scratch) / files.INPUTS, folder))
    return paths


def _copy(inputs: Path, folder: Path) -> Path:
    try:
        return Path(shutil.copyfile(inputs, folder / inputs.name))
    except OSError as error:
        raise StorageError(
            f"{folder / inputs.name} cannot be written ({error.strerror}): choose another `repro`."
        ) from error


def _first_that_shows(
    first: FirstOp,
    calls: CallPair,
    inputs: list[PairedInput],
    environment: Mapping[str, Any],
    scratch: Path,
    model: str | None,
) -> _Tried:
    for seeded, seed in _choices(inputs):
        saved = _save(inputs, seeded, scratch / files.INPUTS)
        script = _script(first, calls, inputs, seeded, environment, model, saved=saved, seed=seed)
        (scratch / files.SCRIPT).write_text(script, encoding="utf-8")
        printed = _run(scratch)
        if printed is not None and _is_rounding(printed, seeded):
            return _Tried(script, saved, printed)
    raise MeasurementError(
        f"{calls.batch.op} gives equal bits when it is called outside the model with the same "
        "inputs, so the cause lies around it (settings, memory or kernels in force): nothing was "
        "written."
    )


def _run(scratch: Path) -> str | None:
    """What the script prints in a process of its own; None if it shows no difference."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", files.SCRIPT],
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == DIFFERS else None


def _is_rounding(printed: str, seeded: Collection[str]) -> bool:
    """False if seeded inputs differ by so much that they cannot stand for the real ones."""
    sizes = re.search(r"largest change: (\S+), largest entry: (\S+)", printed)
    if sizes is None:  # a traceback ends with 1 too
        return False
    return not seeded or float(sizes[1]) <= LARGEST_CHANGE * float(sizes[2])


def _choices(inputs: list[PairedInput]) -> Iterator[tuple[frozenset[str], int]]:
    """Names of the inputs to seed, and the seed: as many as possible first, at the end none."""
    can = frozenset(each.name for each in inputs if each.can_be_seeded)
    weights = can & {each.name for each in inputs if each.batch.is_weight}
    for seed in range(SEEDS if can else 0):
        yield can, seed
    if weights and weights != can:
        yield weights, 0
    yield frozenset(), 0


def _save(inputs: list[PairedInput], seeded: Collection[str], path: Path) -> bool:
    """Write the values that are neither seeded nor in the script; False if there are none."""
    path.unlink(missing_ok=True)
    kept: dict[str, torch.Tensor] = {}
    for each in inputs:
        if each.name not in seeded:
            kept |= each.too_long()
    if kept:
        torch.save(kept, path)
    return bool(kept)


def _script(
    first: FirstOp,
    calls: CallPair,
    inputs: list[PairedInput],
    seeded: Collection[str],
    environment: Mapping[str, Any],
    model: str | None,
    *,
    saved: bool,
    seed: int = 0,
) -> str:
    batch_args, batch_kwargs = arguments(calls.batch, iter([each.in_batch for each in inputs]))
    alone_args, alone_kwargs = arguments(calls.alone, iter([each.in_call_alone for each in inputs]))
    definitions = [line for each in inputs for line in each.definitions(seeded=each.name in seeded)]
    shape = tuple(calls.output.shape)
    same = shape == tuple(calls.batch_output.shape)
    return files.render(
        "op.py.j2",
        name=first.op,
        op=calls.batch.op,
        function=FUNCTIONS.get(calls.batch.op, ""),
        module=first.module or "the model itself",
        model=files.public_name(model),
        version=__version__,
        device=calls.batch.device,
        threads=torch.get_num_threads(),
        precision=torch.get_float32_matmul_precision(),
        variables=sorted(environment["variables"].items()),
        definitions=definitions,
        saved=saved,
        seeded=bool(seeded),
        seed=seed,
        packed=any("packed(" in line for line in definitions),
        batch_args=batch_args,
        batch_kwargs=batch_kwargs,
        alone_args=alone_args,
        alone_kwargs=alone_kwargs,
        part="" if same else index_of(calls.batch_output, shape, calls.cut),
    )


def _issue(
    first: FirstOp,
    tried: _Tried,
    environment: Mapping[str, Any],
    model: str | None,
    *,
    flipped: bool,
) -> str:
    return files.render(
        "op_issue.md.j2",
        flipped=flipped,
        name=first.op,
        module=first.module or "the model itself",
        model=files.public_name(model),
        alone=_shape(first.reference_shape),
        batch=_shape(first.shape),
        repeats="the same call twice: equal bits" in tried.printed,
        saved=tried.saved,
        script=tried.script.rstrip(),
        printed=tried.printed.rstrip(),
        environment=files.environment_text(environment).rstrip(),
        version=__version__,
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
