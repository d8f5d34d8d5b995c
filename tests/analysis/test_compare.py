"""Two runs side by side: agreement and divergences are those that were planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from asking import settled
from hypothesis import given
from hypothesis import strategies as st
from recorded import record, small_experiment

from detcheck.analysis import analyse
from detcheck.analysis.compare import PromptDivergence, compare, experiment_differences, parting
from detcheck.analysis.results import Analysis
from detcheck.completion import Completion, fingerprint_text, fingerprint_token_ids
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import UsageError
from detcheck.evidence import ModelIdentity
from detcheck.kernels.settings import STOCK
from detcheck.rundir import StoredVariant
from detcheck.targets import InProcess
from detcheck.traffic import Trial

from .answers import AnsweringEngine, answer


def tokens(*token_ids: int) -> StoredVariant:
    """A variant whose token n is the word `wn `."""
    pieces = [f"w{token} " for token in token_ids]
    return StoredVariant(
        prompt_index=0,
        fingerprint=fingerprint_token_ids(token_ids),
        text="".join(pieces),
        token_ids=np.asarray(token_ids, dtype=np.int32),
        token_ends=np.cumsum([len(piece) for piece in pieces], dtype=np.int32),
        runner_up_token_ids=None,
        gaps=None,
    )


def words(text: str) -> StoredVariant:
    """A variant of a server that gives no token ids."""
    return StoredVariant(0, fingerprint_text(text), text, None, None, None, None)


def recorded(path: Path, *planted: Planted, **fields: object) -> Analysis:
    return analyse(record(path, ScriptedEngine(planted), small_experiment(**fields)))


def test_a_divergence_is_told_in_words():
    apart = parting(tokens(1, 2, 3, 4), tokens(1, 2, 9, 4))
    assert apart == PromptDivergence(2, "token", "w1 w2 ", "w3 w4 ", "w9 w4 ")
    assert apart.sentence == 'they part at token 2, after "w1 w2 ": "w3 w4 " / "w9 w4 "'


def test_a_prefix_diverges_at_its_end():
    apart = parting(tokens(1, 2), tokens(1, 2, 3))
    assert (apart.position, apart.left, apart.right) == (2, "", "w3 ")
    assert apart.sentence.endswith('the end / "w3 "')


def test_without_tokens_on_one_side_text_is_compared():
    apart = parting(tokens(1, 2), words("w1 w3 "))
    assert (apart.position, apart.unit) == (4, "character")
    assert parting(tokens(1, 2), words("w1 w2 ")) is None


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_answers_diverge_exactly_where_they_differ(a, b):
    apart = parting(tokens(*a), tokens(*b))
    assert (apart is None) == (a == b)
    if apart is not None:
        assert a[: apart.position] == b[: apart.position]
        assert a[apart.position : apart.position + 1] != b[apart.position : apart.position + 1]


def test_equal_runs_agree_everywhere(tmp_path):
    found = compare(recorded(tmp_path / "a"), recorded(tmp_path / "b"))
    assert [pair.agreement for pair in found.pairs] == [1, 1]
    assert {pair.agreement for pair in found.conditions} == {1}
    assert all(pair.references_equal and pair.shared == 1 for pair in found.pairs)
    assert found.experiment_differences == found.environment_differences == ()


def test_a_planted_divergence_is_found_where_it_was_planted(tmp_path):
    left = recorded(tmp_path / "a", kernels=(STOCK,))
    right = recorded(tmp_path / "b", Planted(7, 2, min_batch_size=8), kernels=(STOCK,))
    found = compare(left, right)
    by_size = {pair.batch_size: pair.agreement for pair in found.conditions}
    assert by_size == {1: 1, 4: 1, 8: 0, 16: 0}
    (pair,) = found.pairs
    diverged = sum(row.completions for row in pair.right.by_batch_size if row.batch_size >= 8)
    assert pair.agreement == pytest.approx(1 - diverged / pair.right.completions)
    assert pair.references_equal  # batch size 1 did not diverge


def test_references_that_differ_diverge_at_the_plant(tmp_path):
    left = recorded(tmp_path / "a", kernels=(STOCK,))
    right = recorded(tmp_path / "b", Planted(7, 2, min_batch_size=1), kernels=(STOCK,))
    (pair,) = compare(left, right).pairs
    assert (pair.divergence.position, pair.agreement, pair.shared) == (7, 0, 0)


def test_runs_without_a_common_prompt_are_refused(tmp_path):
    left = recorded(tmp_path / "a", prompts=("One?",))
    right = recorded(tmp_path / "b", prompts=("Two?",))
    with pytest.raises(UsageError, match="no prompt in common"):
        compare(left, right)


def test_settings_that_differ_are_named(tmp_path):
    left = record(tmp_path / "a", experiment=settled(completions=16), target=InProcess())
    other = InProcess(model="x", chat_template=False)
    right = record(tmp_path / "b", experiment=settled(completions=16, load_seed=4), target=other)
    assert experiment_differences(left, left) == []
    assert experiment_differences(left, right) == [
        'model the embedded model → "x"',
        "load seed 0 → 4",
        "chat template on → off",
    ]


def test_equal_answers_of_different_limits_are_shared(tmp_path):
    left = recorded(tmp_path / "a", max_new_tokens=8, kernels=(STOCK,))
    right = recorded(tmp_path / "b", max_new_tokens=20, kernels=(STOCK,))
    for first, second in ((left, right), (right, left)):
        found = compare(first, second)
        (pair,) = found.pairs
        assert (pair.shared, pair.agreement, pair.divergence) == (1, 1, None)
        assert {pair.agreement for pair in found.conditions} == {1}
        assert found.compared_tokens == 8


@pytest.mark.parametrize("planted_at", [5, 12])
def test_of_different_limits_only_the_common_tokens_are_compared(tmp_path, planted_at):
    """A divergence at token 5 counts, one at token 12 lies beyond the limit of 8."""
    left = recorded(tmp_path / "a", max_new_tokens=8, kernels=(STOCK,))
    right = recorded(tmp_path / "b", Planted(planted_at, 2), max_new_tokens=20, kernels=(STOCK,))
    found = compare(left, right)
    (pair,) = found.pairs
    assert pair.right.distinct == 2
    assert pair.shared == 1
    alone = pair.right.by_batch_size[0].completions / pair.right.completions
    assert pair.agreement == pytest.approx(alone if planted_at < 8 else 1)
    by_size = {pair.batch_size: pair.agreement for pair in found.conditions}
    assert (by_size[1], by_size[16]) == (1, 0 if planted_at < 8 else 1)


def test_references_that_differ_below_the_limit_still_diverge(tmp_path):
    left = recorded(tmp_path / "a", max_new_tokens=8, kernels=(STOCK,))
    planted = Planted(3, 2, min_batch_size=1)
    right = recorded(tmp_path / "b", planted, max_new_tokens=20, kernels=(STOCK,))
    (pair,) = compare(left, right).pairs
    assert (pair.divergence.position, pair.agreement, pair.shared) == (3, 0, 0)


def served(path: Path, text: str, tokens: bool, **fields: object) -> Analysis:
    """A run whose every answer is `text`, with the token ids of its words or without."""

    def respond(trial: Trial, position: int) -> Completion:
        if not tokens:
            return Completion(text, "length")
        return answer([int(word) for word in text.split()])

    experiment = small_experiment(kernels=(STOCK,), batch_sizes=(1, 4), **fields)
    return analyse(record(path, AnsweringEngine(respond), experiment))


@pytest.mark.parametrize(
    ("other", "agreement"), [("1 2 3 4 ", 1), ("1 2 ", 1), ("1 3 3 4 ", 0), ("12 3", 0)]
)
def test_without_tokens_the_common_text_is_compared(tmp_path, other, agreement):
    left = served(tmp_path / "a", "1 2 ", False, max_new_tokens=2)
    right = served(tmp_path / "b", other, False, max_new_tokens=4)
    for first, second in ((left, right), (right, left)):
        (pair,) = compare(first, second).pairs
        assert (pair.agreement, pair.shared, pair.references_equal) == (
            agreement,
            agreement,
            bool(agreement),
        )


def test_with_one_limit_a_longer_text_is_another_answer(tmp_path):
    left, right = served(tmp_path / "a", "1 2 ", False), served(tmp_path / "b", "1 2 3 ", False)
    found = compare(left, right)
    assert (found.pairs[0].agreement, found.compared_tokens) == (0, None)


@pytest.mark.parametrize(("text", "agreement"), [("1 2 ", 1), ("1 3 ", 0)])
def test_token_ids_on_one_side_only_are_compared_as_text(tmp_path, text, agreement):
    left, right = served(tmp_path / "a", "1 2 ", True), served(tmp_path / "b", text, False)
    found = compare(left, right)
    assert (found.pairs[0].agreement, found.pairs[0].shared) == (agreement, agreement)
    assert {pair.agreement for pair in found.conditions} == {agreement}


def test_models_that_differ_are_named(tmp_path):
    from gate.runs import analysed

    one, other = (
        analysed(tmp_path / name, identity=ModelIdentity(**identity))
        for name, identity in (
            ("one", {"dtype": "bfloat16", "weights_digest": "a", "prompt_digests": ("p",)}),
            (
                "other",
                {"dtype": "bfloat16", "weights_digest": "b", "prompt_digests": ("q",)},
            ),
        )
    )
    found = compare(one, other).model_differences
    assert found == ("weights digest a → b", "token ids of 1 common prompt")
    assert compare(one, one).model_differences == ()
