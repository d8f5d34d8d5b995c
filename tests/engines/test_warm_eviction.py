"""A prefix cache that is too small for all prompts, and blocks that hold wrong keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from warm_requests import TEXT, bits, opened, trials

from detcheck.engines.continuous import PAGE_TOKENS, ContinuousEngine
from detcheck.engines.warm_prefixes import cached_part
from detcheck.errors import MeasurementError
from detcheck.models import LoadedModel
from detcheck.targets.prefix_cache import COLD, WARM, cache_name
from detcheck.traffic import PlannedRequest, Trial

LENGTH = 2 * PAGE_TOKENS + 6
PROMPTS = tuple(TEXT[start : start + LENGTH] for start in range(0, 60, 12))


def first(engine: ContinuousEngine, cache: str) -> Trial:
    return next(t for t in trials(engine) if t.condition.placement == cache_name(cache))


def asked(trial: Trial, prompts: Sequence[str]) -> Trial:
    """The trial with these prompts, all at once."""
    return replace(trial, requests=tuple(PlannedRequest(one, True, 0, 6) for one in prompts))


def cold_bits(engine: ContinuousEngine, prompts: Sequence[str]) -> list[set[tuple[float, ...]]]:
    trial = first(engine, COLD)
    return [bits(engine.run_trial(asked(trial, [one])).completions) for one in prompts]


@contextmanager
def small_cache(monkeypatch: pytest.MonkeyPatch, blocks: int) -> Iterator[None]:
    """Loops that are made here have a cache of so many blocks."""
    from detcheck.engines import continuous

    usual = continuous.batching_config

    def small(*args: Any, **options: Any) -> Any:
        config = usual(*args, **options)
        config.num_blocks = blocks
        return config

    with monkeypatch.context() as patched:
        patched.setattr(continuous, "batching_config", small)
        yield


def evicted(engine: ContinuousEngine) -> tuple[list[int], list[set[tuple[float, ...]]]]:
    """Ask all prompts twice, one after the other: (cached tokens, bits) of each second time."""
    warm = first(engine, WARM)
    found, answers = [], []
    with engine._kernels(warm.condition.kernels):
        for prompt in (*PROMPTS, *PROMPTS):
            (partial,) = engine.generate(asked(warm, [prompt]), None)
            found.append(engine._loops[WARM].prefixes.tokens)
            answers.append({tuple(partial.logprobs)})
    return found[len(PROMPTS) :], answers[len(PROMPTS) :]


@pytest.mark.sweep
def test_blocks_that_gave_way_to_others_are_computed_afresh(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache holds two of the five prompts: transformers evicts blocks for new requests."""
    with small_cache(monkeypatch, 8):
        engine = opened(tiny_model, "fully-invariant", *PROMPTS)
        found, answers = evicted(engine)
    whole = cached_part(LENGTH, PAGE_TOKENS)
    assert any(tokens < whole for tokens in found), "no block was evicted"
    assert answers == cold_bits(engine, PROMPTS)


@pytest.mark.sweep
def test_a_cache_that_holds_all_prompts_evicts_none(tiny_model: LoadedModel) -> None:
    """The twin: each second request takes all its blocks, with the same bits."""
    engine = opened(tiny_model, "fully-invariant", *PROMPTS)
    found, answers = evicted(engine)
    assert found == [cached_part(LENGTH, PAGE_TOKENS)] * len(PROMPTS)
    assert answers == cold_bits(engine, PROMPTS)


@pytest.mark.sweep
def test_a_warm_trial_whose_blocks_were_evicted_is_no_measurement(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_cache(monkeypatch, 8):
        engine = opened(tiny_model, "stock", *PROMPTS, batch_sizes=(1, 5))
        with pytest.raises(MeasurementError, match="prompt tokens from the prefix cache, not the"):
            engine.run_trial(asked(first(engine, WARM), PROMPTS))


@pytest.mark.parametrize("position", [PAGE_TOKENS - 1, 2 * PAGE_TOKENS - 1])
def test_a_block_whose_last_position_is_stale_is_seen(
    tiny_model: LoadedModel, position: int
) -> None:
    """The twin: while the cache is filled, one key and value of the last layer is kept wrong."""
    engine = opened(tiny_model, "fully-invariant", PROMPTS[0])
    warm = first(engine, WARM)
    right = bits(engine.run_trial(warm).completions)
    cache = engine._loops[WARM]._processor.cache
    update, last = cache.update, tiny_model.model.config.num_hidden_layers - 1

    def stale(
        key_states: Any, value_states: Any, layer_idx: int, *rest: Any, **options: Any
    ) -> Any:
        if layer_idx == last and key_states.shape[2] > position:
            for states in (key_states, value_states):
                states[:, :, position] *= 1.01
        return update(key_states, value_states, layer_idx, *rest, **options)

    with engine._kernels("fully-invariant"):
        cache.update = stale
        engine.prepare(warm)
        cache.update = update
        (partial, *_) = engine.generate(warm, None)
    assert {tuple(partial.logprobs)} != right
    assert engine._loops[WARM].prefixes.tokens == cached_part(LENGTH, PAGE_TOKENS)
