"""Each planted meaning of the record is named by the headline; its twin is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
import torch

from detcheck.analysis.mismatch.results import MismatchReport
from detcheck.engines.prompts import encode_prompt
from detcheck.engines.sampling import Filters, logprobs_of
from detcheck.mismatch.measure import score
from detcheck.mismatch.options import TrainerOptions
from detcheck.mismatch.passes import decoded, head_inputs
from detcheck.mismatch.rollouts import Rollout
from detcheck.models import LoadedModel
from mismatch.tiny import PROMPTS, sampled

Load = Callable[..., LoadedModel]
SINGLE = TrainerOptions(trainer_layout=("single",))


def with_record(rollout: Rollout, logprobs: Sequence[float], **fields: object) -> Rollout:
    return msgspec.structs.replace(rollout, logprobs=tuple(map(float, logprobs)), **fields)


def report_of(
    model: LoadedModel, rollouts: Sequence[Rollout], *, processed: bool = True
) -> MismatchReport:
    given = {"stock": tuple(rollouts)}
    return score(model, given, SINGLE, source="a file", processed=processed).report


def names(report: MismatchReport) -> list[str]:
    return [fault.fault for fault in report.faults]


def logits_of(model: LoadedModel, rollout: Rollout) -> torch.Tensor:
    with torch.no_grad():
        return decoded(model.model, rollout).float()


def test_a_faithful_record_has_no_fault(loaded: Load) -> None:
    model = loaded()
    rollouts = sampled(model, ("stock",))["stock"]
    report = report_of(model, rollouts)
    assert names(report) == []
    assert "decode steps" in report.headline or "no gap" in report.headline


def test_a_temperature_that_was_not_applied_is_named(loaded: Load) -> None:
    model = loaded()
    rollouts = sampled(model, ("stock",), temperature=0.7)["stock"]
    wrong = report_of(model, rollouts, processed=True)  # the engine records raw ones
    assert names(wrong) == ["temperature"]
    assert "recorded ↔ decode steps carries the gap" in wrong.headline
    assert "the temperature was not applied" in wrong.headline
    assert names(report_of(model, rollouts, processed=False)) == []


@pytest.mark.sweep
def test_a_temperature_that_was_applied_is_named_if_raw_ones_are_stated(loaded: Load) -> None:
    model = loaded()
    rollouts = [
        with_record(
            each, logprobs_of(logits_of(model, each) / 0.7, torch.tensor(each.completion_ids))
        )
        for each in sampled(model, ("stock",), temperature=0.7)["stock"]
    ]
    assert names(report_of(model, rollouts, processed=False)) == ["temperature-applied"]
    assert names(report_of(model, rollouts, processed=True)) == []


@pytest.mark.sweep
def test_probabilities_renormalised_over_top_p_are_named(loaded: Load) -> None:
    model = loaded()
    kept = sampled(model, ("stock",), top_p=0.5)["stock"]
    wrong = []
    for each in kept:
        logits = logits_of(model, each)
        record = []
        for row, token in zip(logits, each.completion_ids, strict=True):
            chosen = Filters(top_p=0.5).candidates(row, 1.0)
            record.append(float(row[token] - row[chosen].logsumexp(0)))
        wrong.append(with_record(each, record))
    report = report_of(model, wrong)
    assert names(report) == ["renormalised"]
    assert "renormalised over the tokens that top-p" in report.headline
    assert names(report_of(model, kept)) == []


@pytest.mark.parametrize(("shift", "name"), [(1, "off-by-one-before"), (-1, "off-by-one-after")])
def test_a_record_that_is_off_by_one_is_named(loaded: Load, shift: int, name: str) -> None:
    model = loaded()
    rollouts = sampled(model, ("stock",))["stock"]
    moved = [with_record(each, np.roll(each.logprobs, shift)) for each in rollouts]
    report = report_of(model, moved)
    assert names(report) == [name]
    assert "off by one" in report.headline


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("dtype", "head", "name"),
    [
        (torch.bfloat16, torch.float32, "float32-head"),
        (torch.float32, torch.bfloat16, "bfloat16-head"),
    ],
)
def test_a_head_in_another_number_type_is_named(
    loaded: Load, dtype: torch.dtype, head: torch.dtype, name: str
) -> None:
    model = loaded("llama", dtype)
    rollouts = sampled(model, ("stock",))["stock"]
    weight = model.model.lm_head.weight.to(head)
    wrong = []
    for each in rollouts:
        with torch.no_grad(), head_inputs(model.model) as hidden:
            decoded(model.model, each)
            logits = (torch.cat(hidden).to(head) @ weight.T).float()
        wrong.append(with_record(each, logprobs_of(logits, torch.tensor(each.completion_ids))))
    report = report_of(model, wrong)
    assert names(report) == [name]
    assert "head" in report.headline
    assert names(report_of(model, rollouts)) == []


@pytest.mark.sweep
def test_another_chat_template_is_named(loaded: Load) -> None:
    """Sampled without the template; the trainer's prompt ids have it."""
    model = loaded()
    plain = {text: encode_prompt(model.tokenizer, text, chat_template=False) for text in PROMPTS}
    rollouts = sampled(model, ("stock",))["stock"]
    wrong = []
    for each in rollouts:
        other = msgspec.structs.replace(each, prompt_ids=plain[each.prompt])
        logits = logits_of(model, other)
        wrong.append(with_record(each, logprobs_of(logits, torch.tensor(each.completion_ids))))
    report = report_of(model, wrong)
    assert names(report) == ["other-prompt"]
    assert "another prompt" in report.headline
    assert names(report_of(model, rollouts)) == []


@pytest.mark.sweep
def test_noise_fits_no_other_meaning(loaded: Load) -> None:
    """The twin of all: a record that is wrong in no known way is not given a name."""
    model = loaded()
    generator = np.random.default_rng(0)
    rollouts = [
        with_record(each, np.array(each.logprobs) - generator.random(len(each.logprobs)))
        for each in sampled(model, ("stock",))["stock"]
    ]
    report = report_of(model, rollouts)
    assert names(report) == []
    assert "recorded ↔ decode steps carries the gap" in report.headline
