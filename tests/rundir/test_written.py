"""What is written is what is loaded, whatever an engine gave."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import ENVIRONMENT, create, record, small_experiment

from detcheck.analysis import analyse
from detcheck.completion import Completion, TopTwo
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.rundir import (
    VARIANTS_FILE,
    load,
)

from .runs import EXPERIMENT, TRIALS


def test_what_was_written_is_loaded(base: Path) -> None:
    run = load(base)
    assert run.experiment == EXPERIMENT
    assert run.environment == ENVIRONMENT
    assert (run.run_id, run.detcheck_version) == ("run", "0")
    assert run.complete
    assert run.finished is not None
    assert run.proofs["batch-invariant"].complete
    assert len(run.completions) == 2 * EXPERIMENT.completions
    assert sum(record.trials for record in run.conditions) == TRIALS
    assert {len(variant) for variant in run.variants} == {24}


def test_completions_are_those_of_the_engine(tmp_path: Path) -> None:
    written: list[Completion] = []

    class Remembering(ScriptedEngine):
        def _answer(self, *args: Any) -> Completion:
            written.append(super()._answer(*args))
            return written[-1]

    run = record(tmp_path / "run", Remembering([Planted(5, 3, rate=0.4)], noise=0.1))
    table = run.completions
    assert [run.variants[index].fingerprint for index in table.variant] == [
        completion.fingerprint for completion in written
    ]
    digests = [completion.logprob_digest for completion in written]
    same = np.equal.outer(np.array(digests), np.array(digests))
    assert (np.equal.outer(table.digest, table.digest) == same).all()
    first = next(c for c in written if c.fingerprint == run.variants[0].fingerprint)
    assert first.top_two is not None
    np.testing.assert_array_equal(
        run.variants[0].gaps, np.asarray(first.top_two.gaps, dtype=np.float32)
    )
    assert run.variants[0].text == first.text
    np.testing.assert_array_equal(run.variants[0].token_ids, first.token_ids)


def test_noise_is_measured_before_the_divergence_only(tmp_path: Path) -> None:
    run = record(tmp_path / "run", ScriptedEngine([Planted(3, 1, gap=7.0)]), EXPERIMENT)
    assert set(run.completions.noise.tolist()) == {0.0}
    at_once = record(tmp_path / "at_once", ScriptedEngine([Planted(0, 1, gap=7.0)]), EXPERIMENT)
    parted = at_once.completions.variant != at_once.completions.variant[0]
    assert parted.any()
    assert np.isnan(at_once.completions.noise[parted]).all()


def test_a_variant_is_stored_once(tmp_path: Path) -> None:
    """A hundred times the completions are no more bytes of variants."""
    sizes = []
    for completions in (16, 1600):
        path = tmp_path / str(completions)
        experiment = small_experiment(completions=completions, batch_sizes=(16,))
        record(path, ScriptedEngine([Planted(5, 3)]), experiment)
        sizes.append((path / VARIANTS_FILE).stat().st_size)
    assert sizes[0] == sizes[1]


def test_piece_is_the_text_of_tokens(base: Path) -> None:
    variant = load(base).variants[0]
    assert variant.piece(0, len(variant)) == variant.text
    assert "".join(variant.piece(i, i + 1) for i in range(len(variant))) == variant.text
    assert variant.piece(5, 99) == variant.text.removeprefix(variant.piece(0, 5))
    assert variant.piece(24, 30) == variant.piece(3, 3) == ""
    text_only = replace(variant, token_ids=None, token_ends=None)
    assert text_only.piece(2, 5) == variant.text[2:5]


class Odd:
    """One request, one odd answer."""

    def __init__(self, completion: Completion, path: Path):
        experiment = small_experiment(completions=1, batch_sizes=(1,))
        odd = create(path, experiment)
        odd.append_trial(0, 0, [(0, completion)], elapsed_s=1, generated_tokens=1)
        odd.close()
        self.run = load(path)


@pytest.mark.parametrize(
    "text", ["\ud800 lone", "a\u2028b\nc\r\x00", "\u202egnp.exe", "\U0001f600" * 3, "x" * 100_000]
)
def test_hostile_text_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    [variant] = Odd(Completion(text, "stop"), tmp_path / "run").run.variants
    assert variant.text == text


def test_hostile_errors_do_not_hide_the_failure(tmp_path: Path) -> None:
    run = Odd(Completion("", "error", error="\ud800 gone"), tmp_path / "run").run
    assert run.completions.variant.tolist() == [-1]
    assert run.conditions[0].failed == 1


def test_logits_that_are_not_finite_are_kept_as_unknown(tmp_path: Path) -> None:
    top_two = TopTwo((3, 3), (math.inf, math.nan), (0.0, math.nan))
    completion = Completion("ab", "stop", (1, 2), (1, 2), top_two)
    run = Odd(completion, tmp_path / "run").run
    assert run.variants[0].gaps is not None
    assert np.isnan(run.variants[0].gaps).all()
    assert np.isnan(run.completions.noise).all()
    assert analyse(run).groups[0].noise is None


def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    run = Odd(Completion("", "stop", (), (), TopTwo((), (), ())), tmp_path / "run").run
    assert len(run.variants[0]) == 0
    assert analyse(run).groups[0].distinct == 1


def test_a_prompt_or_seed_beyond_plain_json_is_kept(tmp_path: Path) -> None:
    experiment = small_experiment(prompts=("odd \udcff",), load_seed=2**70)
    create(tmp_path / "run", experiment).close()
    assert load(tmp_path / "run").experiment == experiment
