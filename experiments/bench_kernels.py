"""The cost of batch-invariant kernels: the same trials under each kernels setting, in turn.

    python experiments/bench_kernels.py [MODEL] [--batch-sizes 1,4,8,16,32,64]
        [--dtypes bfloat16,float32] [--kernels batch-invariant,fully-invariant]
        [--tokens 40] [--rounds 5] [--clock wall] [--server URL] [--json]

For each dtype and batch size one engine generates for the same trial under every setting in turn.
The first setting changes from round to round, so that a drift of the machine's speed affects all
settings. A ratio is time per token relative to stock in the same round. The table gives its median
and, in brackets, its smallest and largest value. The total is of one trial at each batch size.

On the CPU there is a further column, `stock packed`: PyTorch's kernels with packed weights, which
are not invariant. It separates the gain of packing from the cost of invariance. `distinct` counts
the different completions of the one prompt, by token ids and log-probabilities.

`--server URL` adds a column for a server on this machine, such as vLLM with the same model and
dtype: the same requests, with log-probabilities, in the same rounds.

On a busy machine use `--clock cpu --threads 1`: the time that this process computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import msgspec
import torch
from torch.nn import functional as F

from detcheck import environment, models
from detcheck.engines import open_engine
from detcheck.engines.continuous import ContinuousEngine
from detcheck.experiment import Experiment
from detcheck.grid import conditions
from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.settings import AS_SERVED, BATCH_INVARIANT, FULLY_INVARIANT, STOCK
from detcheck.targets import InProcess, Served
from detcheck.traffic import Trial, plan_trials

SETTINGS = (BATCH_INVARIANT, FULLY_INVARIANT)
STOCK_PACKED = "stock packed"
SERVER = "server"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Timing:
    """The times of one kernels setting at one batch size."""

    dtype: str
    batch_size: int
    setting: str
    tokens_per_second: float
    """Median over the rounds."""
    ratio: float
    """Time per token relative to stock in the same round: median, smallest and largest."""
    ratio_min: float
    ratio_max: float
    distinct: int
    """Different completions of the probes, by token ids and log-probabilities."""


@dataclass(frozen=True)
class Sample:
    """One trial in one column."""

    seconds_per_token: float
    answers: set[object]
    """Token ids and log-probabilities of the probes' completions."""


Column = Callable[[Trial], Sample]


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    timings: list[Timing] = []
    for dtype in options.dtypes.split(","):
        timings += timings_of(options, dtype)
        if not options.json:
            show([timing for timing in timings if timing.dtype == dtype])
    if options.json:
        rows = [asdict(timing) for timing in timings]
        print(json.dumps({"timings": rows, "environment": environment.collect("auto")}, indent=2))


def timings_of(options: argparse.Namespace, dtype: str) -> list[Timing]:
    """Measure every batch size and setting in one dtype."""
    sizes = tuple(int(size) for size in options.batch_sizes.split(","))
    experiment = Experiment(
        prompts=(options.prompt,),
        kernels=(STOCK, *options.kernels.split(",")),
        batch_sizes=sizes,
        completions=sum(sizes),
        max_new_tokens=options.tokens,
        traffic=options.traffic,
    )
    named: Any = dtype  # InProcess checks that it is a known one
    target = InProcess(model=options.model, dtype=named, device=options.device)
    loaded = models.load(options.model, dtype=dtype, device=options.device)
    clock = CLOCKS[options.clock]
    trials = {
        condition.batch_size: plan_trials(experiment, condition)[0]
        for condition in conditions(experiment, target)
        if condition.kernels == STOCK
    }
    with ExitStack() as stack:
        engine = ContinuousEngine(loaded, experiment, target)
        stack.callback(engine.close)
        columns = columns_of(experiment, engine, clock)
        if options.server:
            columns[SERVER] = on_server(experiment, options.server, stack)
        found = [measure(trials[size], columns, options.rounds) for size in sizes]
    return [replace(timing, dtype=dtype) for timings in found for timing in timings]


def columns_of(
    experiment: Experiment, engine: ContinuousEngine, clock: Callable[[], float]
) -> dict[str, Column]:
    """The columns of this process: each kernels setting and, on the CPU, packed stock."""
    columns: dict[str, Column] = {
        name: in_process(engine, partial(kernels_in_force, name), clock)
        for name in experiment.kernels
    }
    if engine.loaded.device.type == "cpu":
        columns[STOCK_PACKED] = in_process(engine, PackedStock().in_force, clock)
    return columns


def in_process(
    engine: ContinuousEngine,
    context: Callable[[], AbstractContextManager[object]],
    clock: Callable[[], float],
) -> Column:
    """A column of this process; `context` puts its kernels in force."""

    def run(trial: Trial) -> Sample:
        with context(), torch.inference_mode():
            started = clock()
            generated = engine.generate(trial, None)
            elapsed = clock() - started
        probes = [
            (tuple(each.token_ids), tuple(each.logprobs))
            for each, request in zip(generated, trial.requests, strict=True)
            if request.is_probe
        ]
        return Sample(elapsed / sum(len(each.token_ids) for each in generated), {*probes})

    return run


def on_server(experiment: Experiment, url: str, stack: ExitStack) -> Column:
    """A column of a server that speaks the OpenAI API; `stack` closes the connection."""
    target = Served(endpoints=(url,))
    asked = msgspec.structs.replace(experiment, kernels=(AS_SERVED,))
    engine = open_engine(asked, target)
    stack.callback(engine.close)
    places = {each.batch_size: each for each in conditions(asked, target)}

    def run(trial: Trial) -> Sample:
        condition = places[trial.condition.batch_size]
        result = engine.run_trial(replace(trial, condition=condition))
        probes = [
            (each.token_ids, each.top_two and each.top_two.logprobs)
            for _, each in result.completions
        ]
        return Sample(result.elapsed_s / result.generated_tokens, {*probes})

    return run


def measure(trial: Trial, columns: dict[str, Column], rounds: int) -> list[Timing]:
    """Time one trial in every column in turn, `rounds` times, after one round that warms up."""
    seconds: dict[str, list[float]] = defaultdict(list)
    answers: dict[str, set[object]] = defaultdict(set)
    names = tuple(columns)
    for name in names:
        columns[name](shortened(trial))
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            sample = columns[name](trial)
            seconds[name].append(sample.seconds_per_token)
            answers[name] |= sample.answers
    size = trial.condition.batch_size
    return [timing(size, name, seconds[name], seconds[STOCK], answers[name]) for name in names]


def shortened(trial: Trial) -> Trial:
    """The same requests for a few tokens, which choose kernels and reserve memory."""
    requests = (replace(request, max_new_tokens=WARM_UP_TOKENS) for request in trial.requests)
    return replace(trial, requests=tuple(requests))


def timing(
    batch_size: int, name: str, own: list[float], stock: list[float], answers: set[object]
) -> Timing:
    """Summarise seconds per token, paired with stock's by round."""
    ratios = [time / reference for time, reference in zip(own, stock, strict=True)]
    return Timing(
        "",
        batch_size,
        name,
        1 / statistics.median(own),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        len(answers),
    )


class PackedStock:
    """PyTorch's own linear layers, but with weights packed once: fast, and not invariant."""

    def __init__(self) -> None:
        self._packed: dict[int, torch.Tensor] = {}

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Replace `F.linear` inside this context."""
        stock, F.linear = F.linear, self._linear
        try:
            yield
        finally:
            F.linear = stock

    def _linear(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        packed = self._packed.get(id(weight))
        if packed is None:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)
            self._packed[id(weight)] = packed
        op = torch.ops.mkldnn._linear_pointwise.default._op
        product: torch.Tensor = op(input, packed, bias, "none", [], "")
        return product


def totals(timings: list[Timing]) -> dict[str, float]:
    """Total time of one trial at each batch size, relative to stock's total."""
    stock = {each.batch_size: each for each in timings if each.setting == STOCK}
    seconds: dict[str, float] = defaultdict(float)
    for each in timings:
        own = each.batch_size / stock[each.batch_size].tokens_per_second
        seconds[each.setting] += own * each.ratio
    return {name: total / seconds[STOCK] for name, total in seconds.items()}


def show(timings: list[Timing]) -> None:
    """One table: a row per batch size, a column per setting."""
    names = list(dict.fromkeys(each.setting for each in timings))
    cells = {(each.batch_size, each.setting): each for each in timings}
    print(f"{timings[0].dtype}: time per token against stock, [smallest–largest], distinct")
    print(f"{'load':>5} {'stock tokens/s':>15}  " + "  ".join(f"{name:>24}" for name in names[1:]))
    for size in dict.fromkeys(each.batch_size for each in timings):
        stock = cells[size, STOCK]
        row = "  ".join(f"{cell(cells[size, name]):>24}" for name in names[1:])
        print(f"{size:5} {stock.tokens_per_second:11.1f} ({stock.distinct:2})  {row}")
    total = totals(timings)
    print(f"{'total':>5} {'':15}  " + "  ".join(f"{total[name]:24.3f}" for name in names[1:]))


def cell(timing: Timing) -> str:
    spread = f"[{timing.ratio_min:.2f}–{timing.ratio_max:.2f}]"
    return f"{timing.ratio:.3f} {spread} {timing.distinct:3}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="hub id or folder (default: embedded)")
    parser.add_argument("--batch-sizes", default="1,4,8,16,32,64")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--kernels", default=",".join(SETTINGS))
    parser.add_argument("--prompt", default="Write a short story about a lighthouse keeper.")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--traffic", default="alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--server", metavar="URL", help="also measure a server on this machine")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall")
    parser.add_argument("--threads", type=int, default=0, help="default: as PyTorch chooses")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
