"""A prefix computed afresh and one taken from an earlier request's cache: the same bits, or not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sweeps import few
from transformers import MistralConfig, MistralForCausalLM
from warm_requests import TEXT, bits, opened, trials

from detcheck import runner
from detcheck.analysis import analyse
from detcheck.engines.continuous import PAGE_TOKENS, ContinuousEngine, _Loop
from detcheck.engines.warm_prefixes import cached_part
from detcheck.errors import MeasurementError, UsageError
from detcheck.gate import judge as judge_run
from detcheck.models import LoadedModel
from detcheck.targets.prefix_cache import COLD, WARM, cache_name
from detcheck.traffic import FILLER_PROMPTS, PlannedRequest, Trial

LENGTHS = (PAGE_TOKENS + 1, PAGE_TOKENS + 2, 2 * PAGE_TOKENS, 2 * PAGE_TOKENS + 1, 100)
"""Prompt lengths in tokens, which are bytes: what follows the cached blocks is one token, two
tokens, a block less one, one token after two blocks, and some after three."""


def bits_of_all(engine: ContinuousEngine) -> set[tuple[float, ...]]:
    return {each for trial in trials(engine) for each in bits(engine.run_trial(trial).completions)}


@few("length", LENGTHS)
def test_fully_invariant_kernels_hold_prefix_cache(tiny_model: LoadedModel, length: int) -> None:
    engine = opened(tiny_model, "fully-invariant", TEXT[:length])
    assert len(bits_of_all(engine)) == 1


@pytest.mark.sweep
@pytest.mark.parametrize("kernels", ["stock", "batch-invariant"])
def test_other_kernels_do_not(tiny_model: LoadedModel, kernels: str) -> None:
    """The twin: the same check sees others differ, for a request that is always alone."""
    engines = (
        opened(tiny_model, kernels, TEXT[:length], batch_sizes=(1,), completions=2)
        for length in (*LENGTHS, 97)
    )
    assert any(len(bits_of_all(engine)) == 2 for engine in engines)


@few("length", LENGTHS)
def test_warm_requests_take_every_whole_block_and_cold_ones_none(
    tiny_model: LoadedModel, length: int
) -> None:
    engine = opened(tiny_model, "stock", TEXT[:length])
    for trial in trials(engine):
        load = engine.run_trial(trial).load
        assert load is not None
        warm = trial.condition.placement == cache_name(WARM)
        per_request = cached_part(length, PAGE_TOKENS) if warm else 0
        assert load.prefix_cache_hits == per_request * len(trial.requests)
        assert per_request < length


@pytest.mark.sweep
def test_fillers_may_be_shorter_than_a_block(tiny_model: LoadedModel) -> None:
    """They share the batch and are not compared; those that are longer are warm as well."""
    engine = opened(tiny_model, "fully-invariant", TEXT[:70], traffic="mixed")
    assert len(bits_of_all(engine)) == 1
    assert any(len(engine.encode(prompt)) < PAGE_TOKENS for prompt in FILLER_PROMPTS)


def test_a_block_of_another_prefix_is_seen(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: the planted fault takes a cached block without a look at its tokens."""
    from transformers.generation.continuous_batching.cache_allocators import cache_allocator

    engine = opened(tiny_model, "fully-invariant", TEXT[:70], TEXT[1:71])
    right = bits(engine.run_trial(next(trials(engine))).completions)
    by_tokens = cache_allocator.compute_block_hash
    monkeypatch.setattr(
        cache_allocator, "compute_block_hash", lambda parent, tokens: by_tokens(None, [])
    )
    (first,) = {t.condition for t in trials(engine) if t.condition.condition_id == WARM_ONE}
    wrong_block = Trial(
        first,
        0,
        (PlannedRequest(TEXT[1:71], False, 0, 6), PlannedRequest(TEXT[:70], True, 0, 6)),
    )
    assert bits(engine.run_trial(wrong_block).completions) != right


WARM_ONE = "p0/fully-invariant/b1/warm-cache"


@pytest.mark.sweep
def test_two_live_requests_share_a_prefix(tiny_model: LoadedModel) -> None:
    """Each goes on in its own way; neither was asked before, only what they share."""
    shared = TEXT[: 2 * PAGE_TOKENS]
    one, two = shared + " It was cold.", shared + " What now?"
    engine = opened(tiny_model, "fully-invariant", one, two)
    cold = {
        trial.condition.prompt_index: bits(engine.run_trial(trial).completions)
        for trial in trials(engine)
        if trial.condition.placement == cache_name(COLD)
    }
    warm = next(t for t in trials(engine) if t.condition.placement == cache_name(WARM))
    both = tuple(PlannedRequest(prompt, True, step, 6) for prompt in (one, two) for step in (0, 1))
    with engine._kernels("fully-invariant"):
        engine.prepare(replace(warm, requests=(PlannedRequest(shared + "!", False, 0, 2),)))
        partials = engine.generate(replace(warm, requests=both), None)
    assert engine._loops[WARM].prefixes.tokens == 4 * len(shared)
    expected = [*cold[0], *cold[0], *cold[1], *cold[1]]
    assert [tuple(partial.logprobs) for partial in partials] == expected


def test_after_eviction_the_prefix_is_computed_afresh(tiny_model: LoadedModel) -> None:
    engine = opened(tiny_model, "fully-invariant", TEXT[:70])
    warm = next(t for t in trials(engine) if t.condition.placement == cache_name(WARM))
    before = bits(engine.run_trial(warm).completions)
    if not engine._loops[WARM].forget_prefixes():
        pytest.skip("this transformers cannot empty its prefix cache")
    with engine._kernels("fully-invariant"):
        (partial, *_) = engine.generate(warm, None)
    assert engine._loops[WARM].prefixes.tokens == 0
    assert {tuple(partial.logprobs)} == before


@pytest.mark.sweep
def test_a_request_takes_the_blocks_of_one_that_still_generates(tiny_model: LoadedModel) -> None:
    """No earlier request has asked the prefix: its blocks belong to the first, which goes on."""
    shared = TEXT[: 2 * PAGE_TOKENS]
    one, two = shared + " It was cold.", shared + " What now?"
    engine = opened(tiny_model, "fully-invariant", one, two)
    cold = [
        bits(engine.run_trial(trial).completions)
        for trial in trials(engine)
        if trial.condition.placement == cache_name(COLD) and trial.condition.batch_size == 1
    ]
    warm = next(t for t in trials(engine) if t.condition.placement == cache_name(WARM))
    both = (PlannedRequest(one, True, 0, 6), PlannedRequest(two, True, 3, 6))
    with engine._kernels("fully-invariant"):
        partials = engine.generate(replace(warm, requests=both), None)
    assert engine._loops[WARM].prefixes.tokens == len(shared), "of the second request alone"
    assert partials[0].observed_batch.rows_max == 2
    assert [{tuple(partial.logprobs)} for partial in partials] == [cold[0], cold[-1]]


@pytest.mark.sweep
def test_no_trial_finds_the_blocks_of_the_kernels_before_it(tiny_model: LoadedModel) -> None:
    """Stock and fully invariant kernels take turns, and each fills the cache for itself."""
    engine = opened(tiny_model, "stock", TEXT[:97], kernels=("stock", "fully-invariant"))
    found: dict[str, set[tuple[float, ...]]] = {}
    for trial in trials(engine):
        found.setdefault(trial.condition.kernels, set()).update(
            bits(engine.run_trial(trial).completions)
        )
    assert len(found["fully-invariant"]) == 1 < len(found["stock"])


def test_a_warm_cache_that_answers_too_little_is_no_measurement(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(tiny_model, "stock", TEXT[:70])
    warm = next(t for t in trials(engine) if t.condition.placement == cache_name(WARM))
    monkeypatch.setattr(_Loop, "fill", lambda loop, trial: None)
    with pytest.raises(MeasurementError, match=r"took 0 prompt tokens .* not the 64 that"):
        engine.run_trial(warm)


def test_a_cold_cache_that_answers_is_no_measurement(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: the loop of cold requests shares blocks."""
    from detcheck.engines import continuous

    sharing = partial(continuous.batching_config, share_prefixes=True)
    monkeypatch.setattr(continuous, "batching_config", lambda engine, **_: sharing(engine))
    engine = opened(tiny_model, "stock", TEXT[:70])
    cold = [t for t in trials(engine) if t.condition.placement == cache_name(COLD)]
    with pytest.raises(MeasurementError, match="from a prefix cache that should be cold"):
        all(engine.run_trial(trial).completions for trial in cold)


@pytest.mark.sweep
def test_a_run_varies_the_cache_and_stores_it(tiny_model: LoadedModel, tmp_path: Any) -> None:
    engine = opened(tiny_model, "fully-invariant", TEXT[:70])
    run = runner.run(engine.experiment, engine.target, tmp_path / "run", engine=engine)
    hits = {record.placement: record.prefix_cache_hits for record in run.conditions}
    assert hits["cold cache"] == 0 < (hits["warm cache"] or 0)
    assert run.target.placements == ("cold cache", "warm cache")
    assert run.complete


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("kernels", "noted"), [("batch-invariant", True), ("fully-invariant", False)]
)
def test_the_gate_says_which_kernels_do_not_claim_it(
    tiny_model: LoadedModel, tmp_path: Any, kernels: str, noted: bool
) -> None:
    engine = opened(tiny_model, kernels, TEXT[: PAGE_TOKENS + 1], TEXT[:97])
    run = runner.run(engine.experiment, engine.target, tmp_path / "run", engine=engine)
    assert run.traits.varies_prefix_cache
    sentences = [f.sentence for f in judge_run(analyse(run)).findings if f.rule == "prefix-cache"]
    assert any("use fully-invariant" in sentence for sentence in sentences) is noted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "static"}, "The engine static keeps no prefix cache: use `engine="),
        ({"prefix_cache": ("hot",)}, "Unknown prefix cache 'hot': choose one of as-is, cold, warm"),
        ({"prefix_cache": ("warm", "warm")}, "Give each state of the prefix cache once"),
        ({"prompts": (TEXT[:32],)}, "Prompt 1 has 32 tokens, and a prefix cache keeps whole"),
    ],
)
def test_what_cannot_be_warm_is_refused(
    tiny_model: LoadedModel, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        opened(tiny_model, "stock", **({"prompts": (TEXT[:70],)} | changes))


def test_layers_that_share_no_blocks_are_refused(tiny_model: LoadedModel) -> None:
    config = MistralConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=7,
        pad_token_id=1, eos_token_id=1, bos_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    loaded = replace(tiny_model, model=MistralForCausalLM(config).eval())
    with pytest.raises(UsageError, match="This model's layers share no blocks of the cache"):
        opened(loaded, "stock", TEXT[:70])
