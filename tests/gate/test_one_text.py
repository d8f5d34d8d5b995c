"""One text to different prompts of a server: judged by how many got it and by what it says."""

from __future__ import annotations

import dataclasses

import pytest

from detcheck.analysis.evidence import INCONCLUSIVE, NOTE
from detcheck.gate import PASS, judge

from .runs import analysed, rules

PROMPTS = ("One?", "Two?", "Three?", "Four?")
SERVED = {"endpoints": ("http://one/v1",), "kernels": ("as-served",), "prompts": PROMPTS}
OVERLOADED = "Service overloaded, please try again later."
REFUSED = "I'm sorry, but I can't help with that."


def answering(*texts: str | None):
    """The first prompts get these texts; None leaves an answer as it is."""
    first: dict[str, int] = {}

    def change(completion):
        number = first.setdefault(completion.text, len(first))
        text = texts[number] if number < len(texts) else None
        if text is None:
            return completion
        return dataclasses.replace(completion, text=text, token_ids=None, token_ends=None)

    return change


@pytest.mark.parametrize(
    ("texts", "effect"),
    [
        ((), None),
        ((OVERLOADED, OVERLOADED), INCONCLUSIVE),
        ((OVERLOADED,), None),  # one prompt may be about it
        ((REFUSED, REFUSED), NOTE),
        ((REFUSED,) * 4, INCONCLUSIVE),
        (("B",) * 4, None),
    ],
)
def test_one_text_to_several_prompts(tmp_path, texts, effect):
    verdict = judge(analysed(tmp_path / "run", change=answering(*texts), **SERVED))
    assert verdict.value == (INCONCLUSIVE if effect == INCONCLUSIVE else PASS), verdict.reasons
    said = [finding for finding in verdict.findings if "got one answer" in finding.sentence]
    assert [finding.effect for finding in said] == ([] if effect is None else [effect])


def test_a_model_on_this_machine_answers_what_it_is_asked(tmp_path):
    verdict = judge(analysed(tmp_path / "run", change=answering(*[REFUSED] * 4), prompts=PROMPTS))
    assert "endpoint-sound" not in rules(verdict, INCONCLUSIVE)


@pytest.mark.parametrize(
    ("text", "said"), [(OVERLOADED, True), (REFUSED, False), (OVERLOADED * 20, False)]
)
def test_an_error_to_one_prompt_is_said_and_decides_nothing(tmp_path, text, said):
    verdict = judge(analysed(tmp_path / "run", change=answering(text), **SERVED))
    assert verdict.value == PASS
    found = [reason for reason in verdict.reasons if "reads like an error" in reason]
    assert bool(found) is said
