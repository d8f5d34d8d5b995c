"""Every link on tiny models: fully-invariant closes all of them, stock does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sweeps import few

from detcheck.analysis.mismatch import results
from detcheck.errors import UsageError
from detcheck.kernels.mode import batch_invariant
from detcheck.mismatch.chain import Chain
from detcheck.mismatch.measure import score
from detcheck.mismatch.options import LAYOUTS, TrainerOptions
from detcheck.mismatch.passes import prefilled
from detcheck.mismatch.rollouts import Rollout
from detcheck.models import LoadedModel
from mismatch.tiny import sampled

Load = Callable[..., LoadedModel]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def report_of(
    model: LoadedModel, *, engine: str = "continuous", processed: bool = False, **options: object
) -> results.MismatchReport:
    rollouts = sampled(model, engine=engine)
    trainer = TrainerOptions(**options)
    return score(model, rollouts, trainer, source=engine, processed=processed).report


def rows(report: results.MismatchReport, kernels: str, link: str) -> list[results.MismatchRow]:
    return [row for row in report.rows if (row.kernels, row.link) == (kernels, link)]


@few("dtype", DTYPES, ids=str)
@few("engine", ["continuous", "static"])
@few("kind", ["llama", "qwen3_moe", "mistral"])
def test_fully_invariant_on_both_sides_is_exactly_equal(
    loaded: Load, kind: str, engine: str, dtype: torch.dtype
) -> None:
    """Dense, experts and windows shorter than the sequences; stock is the twin."""
    report = report_of(loaded(kind, dtype), engine=engine)
    assert report.missing == ()
    assert report.unproven == {}
    wholes = rows(report, "fully-invariant", results.WHOLE)
    assert [row.trainer_layout for row in wholes] == [*LAYOUTS]
    for row in report.rows:
        if row.kernels == "fully-invariant":
            assert (row.bitwise_tokens, row.bitwise_sequences) == (1, 1)
            assert (row.k1, row.k2, row.k3, row.max_abs) == (0, 0, 0, 0)
            assert (row.mult_prob_error, row.ess) == (1, 1)
    assert min(row.bitwise_tokens for row in rows(report, "stock", results.WHOLE)) < 1
    assert "fully-invariant: no gap" in report.headline


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("engine", ["continuous", "static"])
@pytest.mark.parametrize("kind", ["gemma3_text", "gpt_oss"])
def test_windows_of_some_layers_are_exactly_equal(
    loaded: Load, kind: str, engine: str, dtype: torch.dtype
) -> None:
    """Windowed layers between others; gpt_oss also has experts and sinks.

    Stock is the twin, in float32: these models are so small that 16 bits may round every gap away.
    """
    model = loaded(kind, dtype)
    assert len({*model.model.config.layer_types}) == 2
    report = report_of(model, engine=engine, trainer_layout=("single", "padded"))
    assert (report.missing, report.unproven) == ((), {})
    full = [row for row in report.rows if row.kernels == "fully-invariant"]
    assert {row.trainer_layout for row in full} == {None, "single", "padded"}
    assert {(row.bitwise_tokens, row.max_abs, row.k3) for row in full} == {(1, 0, 0)}
    stock = [row.bitwise_tokens for row in report.rows if row.kernels == "stock"]
    assert dtype != torch.float32 or min(stock) < 1


@pytest.mark.filterwarnings("ignore")
def test_padding_that_matters_is_measured_and_no_fault_of_the_kernels(loaded: Load) -> None:
    model = loaded("mamba2", torch.float32).model
    chain = Chain("batch-invariant", (), processed=False)
    with torch.no_grad(), chain._kernels("batch-invariant"):
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert chain.unproven == {}
    with torch.no_grad(), batch_invariant() as mode:  # the twin: a mode by itself says so
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert mode.proof().unchecked == (type(model).__name__,)


@pytest.mark.sweep
def test_gpt_oss_lets_packed_sequences_see_each_other(loaded: Load) -> None:
    """With any kernels: its code hands the mask no positions, so nothing separates them."""
    report = report_of(loaded("gpt_oss", torch.float32), trainer_layout=("packed",))
    for kernels in ("stock", "fully-invariant"):
        (layout,) = rows(report, kernels, results.PREFILL_LAYOUT)
        assert layout.max_abs > 0.01


def test_batch_invariant_closes_the_batch_and_not_the_prefill(loaded: Load) -> None:
    model = loaded("llama", torch.bfloat16)
    kernels = ("stock", "batch-invariant")
    rollouts = sampled(model, kernels, max_new_tokens=24)
    report = score(model, rollouts, TrainerOptions(), source="", processed=False).report
    (recorded,) = rows(report, "batch-invariant", results.RECORDED_DECODE)
    (prefill,) = rows(report, "batch-invariant", results.DECODE_PREFILL)
    assert recorded.max_abs == 0
    assert prefill.max_abs > 0
    assert "batch-invariant: decode steps ↔ one prefill carries the gap" in report.headline


@pytest.mark.sweep
def test_another_dtype_is_a_link_of_its_own(loaded: Load) -> None:
    model = loaded("llama", torch.bfloat16)
    report = report_of(model, trainer_dtype=("float32",), trainer_layout=("padded",))
    (layout,) = rows(report, "fully-invariant", results.PREFILL_LAYOUT)
    (dtype,) = rows(report, "fully-invariant", results.LAYOUT_DTYPE)
    (whole,) = rows(report, "fully-invariant", results.WHOLE)
    assert (layout.trainer_dtype, layout.max_abs) == ("bfloat16", 0)
    assert (dtype.trainer_dtype, whole.trainer_dtype) == ("float32", "float32")
    assert dtype.max_abs == whole.max_abs > 0
    assert "fully-invariant: layout ↔ the trainer's dtype carries the gap" in report.headline


@pytest.mark.sweep
def test_other_kernels_of_the_trainer_are_a_link_of_their_own(loaded: Load) -> None:
    model = loaded("llama", torch.float32)
    report = report_of(model, trainer_kernels="stock", trainer_layout=("single",))
    (link,) = rows(report, "fully-invariant", results.PREFILL_KERNELS)
    (layout,) = rows(report, "fully-invariant", results.PREFILL_LAYOUT)
    (whole,) = rows(report, "fully-invariant", results.WHOLE)
    assert link.max_abs > 0
    assert layout.max_abs == 0
    assert whole.max_abs == link.max_abs
    assert not rows(report, "stock", results.PREFILL_KERNELS)


def test_other_kernels_that_fail_are_not_tried_again_in_another_dtype(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their link compares kernels in the sampler's dtype, or it is missing."""
    passes = []

    def failing_second(model: object, rollout: Rollout) -> torch.Tensor:
        passes.append(rollout)
        if len(passes) == 2:
            raise RuntimeError("no such kernel")
        return prefilled(model, rollout)

    model = loaded("llama", torch.float32)
    (rollout, *_) = sampled(model, ("stock",))["stock"]
    monkeypatch.setattr("detcheck.mismatch.chain.prefilled", failing_second)
    options = TrainerOptions(
        trainer_kernels="fully-invariant",
        trainer_layout=("single",),
        trainer_dtype=("float32", "bfloat16"),
    )
    report = score(model, {"stock": (rollout,)}, options, source="", processed=False).report
    assert [missing.link for missing in report.missing] == [results.PREFILL_KERNELS]
    links = {row.link for row in report.rows}
    assert links == {
        results.RECORDED_DECODE,
        results.DECODE_PREFILL,
        results.LAYOUT_DTYPE,
        results.WHOLE,
    }


def test_a_pass_that_fails_is_a_missing_link(loaded: Load) -> None:
    """A model that takes no positions cannot be packed; the other layouts are measured."""
    model = loaded("llama")
    stock = model.model.forward

    def without_positions(position_ids: object = None, **inputs: object) -> object:
        if position_ids is not None:
            raise TypeError("forward() got an unexpected argument 'position_ids'")
        return stock(**inputs)

    rollouts = sampled(model, ("stock",))
    model.model.forward = without_positions
    report = score(model, rollouts, TrainerOptions(), source="", processed=False).report
    (missing,) = report.missing
    assert (missing.link, missing.trainer_layout) == (results.PREFILL_LAYOUT, "packed")
    assert "position_ids" in missing.reason
    assert [row.trainer_layout for row in rows(report, "stock", results.WHOLE)] == [
        "single",
        "padded",
    ]


@pytest.mark.parametrize(
    ("prompt_ids", "message"),
    [((5, 4000), "has the token id 4000"), ((5,) * 600, "has 608 tokens, more than the 512")],
)
def test_rollouts_of_another_model_are_refused(
    loaded: Load, prompt_ids: tuple[int, ...], message: str
) -> None:
    other = Rollout(prompt_ids=prompt_ids, completion_ids=(5,) * 8, logprobs=(-1.0,) * 8)
    with pytest.raises(UsageError, match=message):
        score(loaded(), {"stock": (other,)}, TrainerOptions(), source="", processed=False)


@pytest.mark.sweep
def test_slices_cover_every_token_once(loaded: Load) -> None:
    report = report_of(loaded("llama"), trainer_layout=("single",))
    (whole,) = rows(report, "stock", results.WHOLE)
    for by in ("position", "entropy"):
        own = [each for each in report.slices if (each.kernels, each.by) == ("stock", by)]
        assert sum(each.tokens for each in own) == whole.tokens
        assert max(each.max_abs for each in own) == whole.max_abs


@pytest.mark.sweep
def test_an_offset_of_the_record_is_carried_by_its_own_link(loaded: Load) -> None:
    """The planted fault: a constant added to the recorded log-probabilities, and nothing else."""
    import msgspec

    model = loaded("llama")
    own = sampled(model, ("fully-invariant",))["fully-invariant"]
    moved = tuple(
        msgspec.structs.replace(each, logprobs=tuple(value - 0.25 for value in each.logprobs))
        for each in own
    )
    report = score(
        model, {"fully-invariant": moved}, TrainerOptions(), source="", processed=False
    ).report
    (record,) = rows(report, "fully-invariant", results.RECORDED_DECODE)
    (prefill,) = rows(report, "fully-invariant", results.DECODE_PREFILL)
    assert record.k1 == pytest.approx(-0.25, abs=1e-6)
    assert prefill.max_abs == 0
    assert "recorded ↔ decode steps carries the gap" in report.headline
    assert report.faults == ()


def test_another_dtype_is_loaded_from_the_same_commit(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = {"name": "somebody/model", "source": "somebody/model", "commit": "0123abc"}
    model = replace(loaded("llama"), **hub)
    asked: dict[str, object] = {}

    def load(name: str, **options: object) -> LoadedModel:
        asked.update(options, name=name)
        return loaded("llama", torch.bfloat16)

    rollouts = sampled(model, ("stock",))
    monkeypatch.setattr("detcheck.mismatch.measure.models.load", load)
    options = TrainerOptions(trainer_dtype=("bfloat16",), trainer_layout=("single",))
    score(model, rollouts, options, source="", processed=False)
    assert asked == {
        "name": "somebody/model",
        "revision": "0123abc",
        "dtype": "bfloat16",
        "device": "cpu",
        "trust_remote_code": False,
    }
