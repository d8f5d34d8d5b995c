"""The invariance matrix: ops × relations × dtypes, under each kernels setting, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from detcheck.errors import UsageError
from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.settings import AS_SERVED, BATCH_INVARIANT, PREFILL, STOCK, KernelSettings
from detcheck.models import resolve_device
from detcheck.probes.bits import row_ulps
from detcheck.probes.cases import FAMILIES_OF, OPS, Call, OpCase, cases
from detcheck.probes.relations import RELATIONS, ROW_RELATIONS, Outcome, run, try_relation
from detcheck.probes.shapes import LayerShapes

DTYPES = ("bfloat16", "float16", "float32")
PROMISED = ("repeat", "batch-size", "position", "neighbours", "layout", "padding")
"""Relations that batch-invariant kernels promise at their default level."""
_TIMED_SIZES = (1, 16)
_TIMED_S = 0.003
_TIMED_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Cell:
    """One op at one shape and dtype under one relation and kernels setting."""

    op: str
    relation: str
    dtype: str
    shape: str
    kernels: str
    rows: int
    """Rows compared with their reference rows."""
    rows_differ: int
    max_ulp: int
    classes: tuple[tuple[int, ...], ...]
    """Groups of batch sizes that give the same bits; for `batch-size` only."""
    relative_time: float | None
    """Time relative to stock: geometric mean over calls of 1, 16, all rows; None without stock."""

    @property
    def promised(self) -> bool:
        """True if the kernels setting promises that no row differs here."""
        families = KernelSettings.parse(self.kernels).families
        covered = FAMILIES_OF[self.op] <= {*families}
        return covered and (self.relation in PROMISED or PREFILL in families)


def audit(
    shapes: LayerShapes,
    *,
    ops: Iterable[str] | None = None,
    relations: Iterable[str] | None = None,
    dtypes: Iterable[str] = DTYPES,
    kernels: Sequence[str] = (STOCK, BATCH_INVARIANT),
    device: str = "auto",
    seed: int = 0,
    on_case: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """Probe every op at `shapes` and boundary values; `on_case` gets (cases done, all cases).

    Raises UsageError for unknown names, MeasurementError if the batch-invariant kernels fail
    their self-check.
    """
    wanted = _known("op", ops, OPS)
    tried = _known("relation", relations, RELATIONS)
    floats = _known("dtype", dtypes, DTYPES)
    for setting in kernels:
        if setting == AS_SERVED:
            raise UsageError(
                f"{AS_SERVED} is for endpoints, whose ops cannot be probed: choose other `kernels`."
            )
        KernelSettings.parse(setting)
    target = resolve_device(device)
    grid = [(case, dtype) for case in cases(shapes) if case.op in wanted for dtype in floats]
    found: list[Cell] = []
    with torch.inference_mode():
        for done, (case, dtype) in enumerate(grid, start=1):
            found += _cells(case, dtype, tried, kernels, target, seed)
            if on_case is not None:
                on_case(done, len(grid))
    if not found:
        raise UsageError(
            f"{', '.join(tried)} do not apply to {', '.join(wanted)}, so nothing was probed: "
            "padding, chunking, prefill-decode and prefix-cache apply to the attention ops only."
        )
    return found


def _known(noun: str, given: Iterable[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    names = known if given is None else tuple(dict.fromkeys(given))
    for name in names:
        if name not in known:
            raise UsageError(f"Unknown {noun} {name!r}: choose among {', '.join(known)}.")
    if not names:
        raise UsageError(f"Give at least one {noun}: {', '.join(known)}.")
    return names


def _cells(
    case: OpCase,
    dtype: str,
    relations: tuple[str, ...],
    kernels: Sequence[str],
    device: torch.device,
    seed: int,
) -> Iterator[Cell]:
    call = _on(case.build(getattr(torch, dtype), seed), device)
    times: dict[str, list[float]] = {}
    for setting in kernels:
        with kernels_in_force(setting):
            outcomes = list(_outcomes(call, relations, seed))
            times[setting] = _times(call)
        for outcome in outcomes:
            yield Cell(
                case.op,
                outcome.relation,
                dtype,
                case.shape,
                setting,
                outcome.rows,
                outcome.rows_differ,
                outcome.max_ulp,
                outcome.classes,
                _relative(times[setting], times.get(STOCK)),
            )


def _on(call: Call, device: torch.device) -> Call:
    """`call` with its inputs on `device`; its pairs, which close over the inputs, are rebuilt."""
    if device.type == "cpu":
        return call
    from detcheck.probes.attention_cases import request_pairs

    inputs = tuple(x.to(device) for x in call.inputs)
    return replace(call, inputs=inputs, pairs=request_pairs(inputs) if call.pairs else {})


def _outcomes(call: Call, relations: tuple[str, ...], seed: int) -> Iterator[Outcome]:
    """The outcome of each relation that applies to the op."""
    reference = run(call.function, call.inputs)
    for relation in relations:
        if relation in ROW_RELATIONS:
            yield try_relation(relation, call.function, call.inputs, reference=reference, seed=seed)
        elif relation in call.pairs:
            yield _of_requests(relation, call)


def _of_requests(relation: str, call: Call) -> Outcome:
    outcome = Outcome(relation)
    for expected, actual in call.pairs[relation]():
        distances = row_ulps(actual, expected)
        outcome = replace(
            outcome,
            rows=outcome.rows + len(distances),
            rows_differ=outcome.rows_differ + int(distances.count_nonzero()),
            max_ulp=max(outcome.max_ulp, int(distances.max())),
        )
    return outcome


def _times(call: Call) -> list[float]:
    """Seconds of one call of 1, 16 and all rows: the shortest of a few rounds each."""
    return [
        _seconds(call, tuple(x[:size].contiguous() for x in call.inputs))
        for size in (*_TIMED_SIZES, call.inputs[0].shape[0])
    ]


def _seconds(call: Call, inputs: tuple[torch.Tensor, ...]) -> float:
    once = _clock(call, inputs, 1)
    repeats = max(1, min(50, int(_TIMED_S / once)))
    return min(once, *(_clock(call, inputs, repeats) for _ in range(_TIMED_ROUNDS)))


def _clock(call: Call, inputs: tuple[torch.Tensor, ...], repeats: int) -> float:
    _finish(inputs)
    started = perf_counter()
    for _ in range(repeats):
        call.function(*inputs)
    _finish(inputs)
    return (perf_counter() - started) / repeats


def _finish(inputs: tuple[torch.Tensor, ...]) -> None:
    if inputs[0].is_cuda:
        torch.cuda.synchronize()


def _relative(times: list[float], stock: list[float] | None) -> float | None:
    if stock is None:
        return None
    ratios = torch.tensor([a / b for a, b in zip(times, stock, strict=True)], dtype=torch.float64)
    return round(float(ratios.log().mean().exp()), 3)
