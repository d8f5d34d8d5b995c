"""Every causal architecture of transformers: is it covered, and do its rows depend on their batch?

    python experiments/model_matrix.py                     # all; about 15 minutes on 2 cores
    python experiments/model_matrix.py --only mixtral,gemma3_text
    python experiments/model_matrix.py --resume            # only what is missing
    python experiments/model_matrix.py --costs             # only the costs, about 8 minutes

For each architecture that the installed transformers lists, a tiny random model is built from its
default config by rules. If the batch-invariant kernels cover it, every row of the batches, padded
on the left, is compared with the same row alone, bit for bit: in one forward pass, and in
`generate` with the cache. Of an architecture that is held only for requests of one length, the
batches have no padding. Then come the relations of `matrix_relations.py`, among them continuous
batching. All is done with stock kernels (the control) and with invariant kernels, in float32 and
bfloat16. Last comes the cost (`matrix_costs.py`): time it on an idle machine. None of it reuses
the checks of `detcheck coverage`, which say what is claimed. Writes `table.md` and `results.json`
(with the environment) to `results/models/`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch
from matrix_costs import costs
from matrix_relations import (
    HELD,
    LENGTHS,
    REFUSED,
    TOO_LONG,
    TRACEBACK,
    VARIANT,
    Relation,
    batching,
    chunking,
    forward,
    generate,
    prefill_decode,
    prefix_cache,
    requests_of,
)
from matrix_table import DTYPE_NAMES, FAILED, HELD_UNPADDED, KERNELS, UNBUILT, Row, table

from detcheck import environment
from detcheck.errors import ModelError, UsageError
from detcheck.kernels.coverage import coverage, level_held, refusal
from detcheck.kernels.in_force import kernels_in_force
from detcheck.kernels.settings import BATCH_INVARIANT, FULLY_INVARIANT
from detcheck.models.tiny import architectures, config_of, quiet, shrunk, tiny_model

RESULTS = Path(__file__).resolve().parents[1] / "results"
ONE_LENGTH = (14, 70)
"""Tokens of four requests each, for architectures that are held for requests of one length.

The scans in transformers take chunks of 64 tokens; the tiny models also have chunks of 4."""
BATCHES = ((2,), (0, 1, 2, 3), (3, 2, 1, 0), (1, 0))
"""The requests of each batch, by index and in order. The first is the same call again."""
DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


class TooLongError(BaseException):
    """An architecture took more than its time limit. No `except Exception` may catch it."""


def main() -> None:
    options = arguments()
    names = options.only.split(",") if options.only else architectures()
    known = measured(options.out) if options.resume or options.costs else {}
    for row in known.values() if options.costs else ():
        row.cost = {}
    rows: list[Row] = []
    for name in names:
        last = known.get(name) or measure(name, options.limit)
        timed = add_cost(last, options.limit)
        rows.append(last)
        told = f"{last.outcome} {last.reason or last.differ} cost {last.cost or 'unknown'}"
        print(f"{name}: {told}", file=sys.stderr, flush=True)
        if timed or name not in known:
            later = [known[each] for each in names[len(rows) :] if each in known]
            write([*rows, *later], options.out, only_costs=options.costs)
    write(rows, options.out, only_costs=options.costs)
    print(table(rows))
    if any({VARIANT, FAILED, TRACEBACK} & {*outcomes(row)} for row in rows):
        sys.exit(1)


def outcomes(row: Row) -> list[str]:
    """Of its rows, and of each relation that was tried."""
    return [row.outcome, *(relation.outcome for relation in row.relations.values())]


def measured(out: Path) -> dict[str, Row]:
    """Rows of an earlier run by architecture, without those that were not built."""
    rows = msgspec.convert(stored(out).get("rows", []), list[Row])
    return {row.architecture: row for row in rows if row.outcome in (HELD, HELD_UNPADDED, REFUSED)}


def stored(out: Path) -> dict[str, Any]:
    """The results of an earlier run; empty if there was none."""
    file = out / "results.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def measure(name: str, limit_s: int = 60) -> Row:
    """Build one architecture and compare its rows; takes at most `limit_s` seconds."""
    row, start = Row(name), time.perf_counter()
    try:
        with limited(limit_s), quiet():
            config = shrunk(config_of(name))
            model = tiny_model(config)
            require_to_run(model)
            row.outcome = REFUSED
            found = coverage(model)
            row.reason = refusal(found, name)
            if row.reason is None:
                row.outcome = VARIANT
                models = models_that_run(config)
                compare(row, models, one_length=found.one_length)
                fail = ", ".join(dtype for dtype in DTYPES if dtype not in models)
                if fail:
                    row.reason = f"It does not run in {fail} with stock kernels either."
                row.level = lowest_level(models.values())
    except (ModelError, TooLongError) as error:
        row = Row(name, UNBUILT, reason=str(error))
    except UsageError as error:
        row.outcome, row.reason = REFUSED, str(error)
    except Exception as error:  # of the model's own code
        row.outcome = FAILED
        row.reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    if row.level is not None:
        with quiet():
            relate(row, models, limit_s)
    row.elapsed_s = round(time.perf_counter() - start, 2)
    return row


def relate(row: Row, models: dict[str, Any], limit_s: int) -> None:
    """Try the relations that the row's level claims; each takes at most `limit_s` seconds."""
    tried: dict[str, Callable[[Mapping[str, Any]], Relation]] = {"continuous": batching}
    if row.level == FULLY_INVARIANT:
        tried |= {"chunking": chunking, "prefill-decode": prefill_decode}
    for name, ask in tried.items():
        row.relations[name] = within(limit_s, ask, models)
    if row.level == FULLY_INVARIANT and row.relations["continuous"].differ:
        row.relations["prefix-cache"] = within(limit_s, prefix_cache, models)


def add_cost(row: Row, limit_s: int) -> bool:
    """Time a held architecture that has no cost yet, for at most `limit_s` seconds.

    Returns whether it has one now that it did not have before.
    """
    if row.cost or row.level is None:
        return False
    lengths = ONE_LENGTH[:1] * len(LENGTHS) if row.outcome == HELD_UNPADDED else LENGTHS
    try:
        with limited(limit_s), quiet():
            row.cost = costs(models_that_run(shrunk(config_of(row.architecture))), lengths)
    except TooLongError:
        return False  # shown as not known
    return True


def within(
    limit_s: int, ask: Callable[[Mapping[str, Any]], Relation], models: dict[str, Any]
) -> Relation:
    try:
        with limited(limit_s):
            return ask(models)
    except TooLongError as error:
        return Relation(TOO_LONG, str(error))


def lowest_level(models: Iterable[Any]) -> str:
    """The level that a model holds in all dtypes: 16 bits may round a state between two steps."""
    held = {level_held(model) for model in models}
    lowest: str = BATCH_INVARIANT if BATCH_INVARIANT in held else FULLY_INVARIANT
    return lowest


def require_to_run(model: Any) -> None:
    """Raise ModelError if a forward pass fails with stock kernels: then its sizes do not fit."""
    try:
        with torch.no_grad():
            forward(model, [[4, 5, 6]])
    except Exception as error:  # of the model's own code
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:150]
        raise ModelError(f"Its tiny model does not run with stock kernels ({reason}).") from error


def models_that_run(config: Any) -> dict[str, Any]:
    """A tiny model by dtype, without the dtypes in which it does not run with stock kernels.

    Raises ModelError if it runs in none.
    """
    models = {}
    for name, dtype in DTYPES.items():
        model = tiny_model(config, dtype)
        try:
            with torch.no_grad():
                forward(model, [[*range(4, 4 + max(LENGTHS))]])
                generate(model, [[*range(4, 4 + max(LENGTHS))]])
        except Exception:  # of the model's own code
            continue
        models[name] = model
    if not models:
        raise ModelError("Its tiny model does not generate with stock kernels.")
    return models


def compare(row: Row, models: dict[str, Any], *, one_length: bool = False) -> None:
    """Count rows that differ from the same rows alone, with each kernels setting."""
    each = [(length,) * len(LENGTHS) for length in ONE_LENGTH] if one_length else [LENGTHS]
    for kernels in KERNELS:
        with kernels_in_force(kernels), torch.no_grad():
            equal = [
                same
                for model in models.values()
                for lengths in each
                for same in rows_equal(model, lengths)
            ]
        row.rows, row.differ[kernels] = len(equal), equal.count(False)
    held = HELD_UNPADDED if one_length else HELD
    row.outcome = VARIANT if row.differ["batch-invariant"] else held


def rows_equal(model: Any, lengths: Sequence[int] = LENGTHS) -> list[bool]:
    """For each row of each batch, forward and generated: whether it equals the row alone."""
    requests = requests_of(lengths)
    equal = []
    for run in (forward, generate):
        alone = [run(model, [request])[0] for request in requests]
        for batch in BATCHES:
            together = run(model, [requests[at] for at in batch])
            equal += [
                torch.equal(logits, alone[at]) for logits, at in zip(together, batch, strict=True)
            ]
    return equal


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """A context that raises TooLongError if its body takes more than `seconds`."""

    def stop(*_: Any) -> None:
        raise TooLongError(f"It took more than {seconds} s.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def write(rows: Sequence[Row], out: Path, *, only_costs: bool = False) -> None:
    """Save the rows that have been measured so far, so that a later failure does not lose them.

    With `only_costs` the environment of all other figures is kept, and that of the costs is added.
    """
    out.mkdir(parents=True, exist_ok=True)
    here = environment.collect("cpu")
    report = {"rows": [asdict(row) for row in rows], "environment": here}
    if only_costs:
        report |= {"environment": stored(out).get("environment", here), "cost_environment": here}
    (out / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table(rows), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="architectures, comma-separated (default: all)")
    parser.add_argument("--resume", action="store_true", help="keep rows that were measured before")
    parser.add_argument(
        "--costs", action="store_true", help="keep rows that were measured before; time all costs"
    )
    parser.add_argument("--limit", type=int, default=60, help="seconds for each architecture")
    parser.add_argument("--out", type=Path, default=RESULTS / "models", help="where to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
