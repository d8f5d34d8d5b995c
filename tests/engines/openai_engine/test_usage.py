"""The counts in a reply's `usage`: cached prompt tokens by every name that servers give them."""

from __future__ import annotations

import pytest

from detcheck.engines.openai.usage import Usage


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        ({}, None),
        ({"prompt_tokens_details": None}, None),
        ({"prompt_tokens_details": {"cached_tokens": None}}, None),
        ({"prompt_tokens_details": {"cached_tokens": 0}}, 0),
        ({"prompt_tokens_details": {"cached_tokens": 48}}, 48),
        ({"input_tokens_details": {"cached_tokens": 48.0}}, 48),
        ({"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 3}, 64),
        ({"cached_tokens": 12}, 12),
        ({"prompt_tokens_details": {"cached_tokens": -1}}, None),
        ({"prompt_tokens_details": {"cached_tokens": "all"}}, None),
        ({"completion_tokens_details": {"cached_tokens": 5}}, None),
    ],
)
def test_cached_prompt_tokens(usage, cached):
    assert Usage().updated(usage).cached_tokens == cached


def test_a_later_usage_without_the_number_does_not_take_it_away():
    usage = Usage().updated({"cached_tokens": 48}).updated({"completion_tokens": 7})
    assert (usage.cached_tokens, usage.completion_tokens) == (48, 7)
    assert usage.updated({"cached_tokens": 64}).cached_tokens == 64
