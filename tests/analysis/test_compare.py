"""Two runs side by side: agreement and partings are those that were planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import record, small_experiment

from detcheck.analysis import analyse
from detcheck.analysis.compare import Parting, compare, experiment_differences, parting
from detcheck.analysis.results import Analysis
from detcheck.completion import fingerprint_text, fingerprint_token_ids
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.errors import UsageError
from detcheck.experiment import STOCK
from detcheck.rundir import StoredVariant


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


def test_a_parting_is_told_in_words():
    apart = parting(tokens(1, 2, 3, 4), tokens(1, 2, 9, 4))
    assert apart == Parting(2, "token", "w1 w2 ", "w3 w4 ", "w9 w4 ")
    assert apart.sentence == 'they part at token 2, after "w1 w2 ": "w3 w4 " / "w9 w4 "'


def test_a_prefix_parts_at_its_end():
    apart = parting(tokens(1, 2), tokens(1, 2, 3))
    assert (apart.position, apart.left, apart.right) == (2, "", "w3 ")
    assert apart.sentence.endswith('the end / "w3 "')


def test_without_tokens_on_one_side_text_is_compared():
    apart = parting(tokens(1, 2), words("w1 w3 "))
    assert (apart.position, apart.unit) == (4, "character")
    assert parting(tokens(1, 2), words("w1 w2 ")) is None


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_answers_part_exactly_where_they_differ(a, b):
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


def test_references_that_differ_part_at_the_plant(tmp_path):
    left = recorded(tmp_path / "a", kernels=(STOCK,))
    right = recorded(tmp_path / "b", Planted(7, 2, min_batch_size=1), kernels=(STOCK,))
    (pair,) = compare(left, right).pairs
    assert (pair.parting.position, pair.agreement, pair.shared) == (7, 0, 0)


def test_runs_without_a_common_prompt_are_refused(tmp_path):
    left = recorded(tmp_path / "a", prompts=("One?",))
    right = recorded(tmp_path / "b", prompts=("Two?",))
    with pytest.raises(UsageError, match="no prompt in common"):
        compare(left, right)


def test_settings_that_differ_are_named():
    left = small_experiment()
    right = small_experiment(model="x", chat_template=False, seed=4)
    assert experiment_differences(left, left) == []
    assert experiment_differences(left, right) == [
        'model the embedded model → "x"',
        "seed 0 → 4",
        "chat template on → off",
    ]
