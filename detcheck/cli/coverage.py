"""`detcheck coverage`: which ops of a model the batch-invariant kernels cover, and by what."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detcheck.cli.shared import AsJson
from detcheck.errors import ModelError, UsageError
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.targets import InProcess

if TYPE_CHECKING:
    from detcheck.kernels.op_watch import CoveredOp, Uncovered


@dataclass(frozen=True, slots=True)
class ModelCoverage:
    """The findings of the command about one model."""

    model: str
    architecture: str
    covered: tuple[CoveredOp, ...]
    uncovered: tuple[Uncovered, ...]
    level: str | None
    """`fully-invariant` or `batch-invariant`; None if the model is refused."""
    reason: str | None
    """The problem and its remedy, if the model is refused."""
    one_length: bool = False
    """True if the level is held only in batches of requests of one length."""
    measure: str | None = None
    """The command that measures the model at this level; None if it is refused."""


def coverage_command(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Folder, hub id, or architecture such as mixtral. [default: the embedded model]",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model's own code run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show which ops of a model the batch-invariant kernels cover, and which not.

    No weights are loaded: a tiny random model with the same kinds of layers runs a few tokens,
    padded and decoded. The level is the highest that it held here, bit for bit.
    """
    from detcheck.cli.console import print_json

    with _without_collection():
        found = _examine(model, trust_remote_code)
    print_json(found) if as_json else _print(found)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Without garbage collection, which takes a fifth of the time to import transformers."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _examine(name: str | None, trust_remote_code: bool) -> ModelCoverage:
    from detcheck.kernels.coverage import coverage, level_held, refusal
    from detcheck.models.tiny import config_of, quantisation, quiet, shrunk, tiny_model

    config = config_of(name, trust_remote_code=trust_remote_code)
    shown, kind = name or "the embedded model", config.model_type
    with quiet():
        try:
            model = tiny_model(shrunk(config), trust_remote_code=trust_remote_code)
        except ModelError as error:
            instead = _run(name, f"{STOCK},{BATCH_INVARIANT}", trust_remote_code)
            raise ModelError(
                f"{str(error).rstrip('.')}: the model itself is checked by {instead}."
            ) from error
        try:
            found = coverage(model)
        except ModelError:
            raise
        except UsageError as error:  # a feature of attention that is not covered
            return ModelCoverage(shown, kind, (), (), None, str(error))
        reason = refusal(found, shown) or _why_not_quantised(shown, quantisation(config))
        level = None if reason is not None else level_held(model)
        one_length = level is not None and found.one_length
        measure = None
        if level is not None:
            measure = _run(name, f"{STOCK},{level}", trust_remote_code)
            measure += " --engine static" if one_length or not _batches(model) else ""
    return ModelCoverage(
        *(shown, kind, found.covered, found.uncovered, level, reason, one_length, measure)
    )


def _batches(model: Any) -> bool:
    """True if the engine `continuous` takes the model: its own check is made on a few tokens."""
    from detcheck.engines.continuous import ContinuousEngine
    from detcheck.experiment import Experiment
    from detcheck.models.tiny_loaded import with_tokenizer

    experiment = Experiment(
        prompts=("5 6 7 8 9",),
        kernels=(STOCK,),
        batch_sizes=(1, 2),
        completions=4,
        max_new_tokens=4,
    )
    target = InProcess(chat_template=False)
    try:
        ContinuousEngine(with_tokenizer(model, "It"), experiment, target).close()
    except Exception:  # of the engine, or of the model's own code
        return False
    return True


def _run(name: str | None, kernels: str, trust_remote_code: bool) -> str:
    """The command that measures a model; MODEL stands for one of an architecture."""
    from detcheck.models.tiny import architecture_of

    known = architecture_of(name) is not None
    words = [
        "detcheck",
        "run",
        *([] if name is None else ["MODEL" if known else shlex.quote(name)]),
    ]
    trust = ["--trust-remote-code"] if trust_remote_code else []
    return " ".join([*words, "-k", kernels, *trust])


def _why_not_quantised(name: str, method: str | None) -> str | None:
    from detcheck.models.tiny import WEIGHT_ONLY

    if method is None or method.removeprefix("torchao ") in WEIGHT_ONLY:
        return None
    return (
        f"{name} has quantised weights ({method}), whose products are not covered: use "
        '`kernels="stock"`, or its weights before they were quantised.'
    )


def _print(found: ModelCoverage) -> None:
    from detcheck.cli.console import print_line, stdout
    from detcheck.cli.options import with_flags

    print_line(f"{found.model}: architecture {found.architecture}, as a tiny random model")
    if found.covered:
        stdout.print(_table(found))
    limit = ", for requests of one length; padding is refused" if found.one_length else ""
    print_line(f"Level: {found.level or 'stock only'}{limit}", "bold")
    if found.reason is not None:
        print_line(with_flags(found.reason), "red")
    else:
        print_line(f"Measure it: {found.measure}")


def _table(found: ModelCoverage) -> Any:
    from rich.table import Table

    from detcheck.cli.console import untrusted

    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("op", "covered by", "first module"):
        table.add_column(column, overflow="fold")
    for missing in found.uncovered:
        row = (missing.op, "nothing", missing.module)
        table.add_row(*(untrusted(text, "red") for text in row))
    for one in found.covered:
        table.add_row(*(untrusted(text) for text in (one.op, one.by, one.module)))
    return table
