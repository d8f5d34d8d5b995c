"""Cold and warm prefix caches: told to the server, proved by its counters, and compared."""

from __future__ import annotations

import pytest
from asking import ask
from servers.faults import Faults
from servers.running import serve as misbehave
from sweeps import few

from detcheck.analysis import analyse
from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.errors import UsageError
from detcheck.gate import PASS, judge
from detcheck.runner import run

LONG = "Tell me at length about the life and the lectures of Richard Feynman, please."

COUNTS_NO_TOKEN = {"metrics_scale": 0.0, "metrics_missing": ("vllm:generation_tokens_total",)}
"""Counters that are there and stay 0, and nothing to tell that they do."""


def measured(folder, faults, **options):
    small = {"batch_sizes": (1, 8), "completions": 24, "max_new_tokens": 12, "prompts": (LONG,)}
    with misbehave(Faults(**faults)) as served:
        asked = ask(endpoints=[served.url], **(small | options))
        return analyse(run(*asked, folder / "run"))


@few(
    ("faults", "value", "phrase"),
    [
        ({}, PASS, ""),
        ({"flip_on_cached_prefix": True, "flip_at": 3}, FAIL, ""),
        ({"ignores_cache_salt": True}, INCONCLUSIVE, "cold prefix cache"),
        ({"refuses": ("cache_salt",)}, INCONCLUSIVE, "cold prefix cache"),
        ({"metrics": False, "step_s": 0.004}, INCONCLUSIVE, "nothing shows its state"),
        ({"refuses": ("cache_prompt",)}, PASS, ""),
        ({"metrics": False, "reports_cached": "right", "step_s": 0.004}, PASS, ""),
        ({"reports_cached": "right"}, PASS, ""),
        ({"reports_cached": 48}, INCONCLUSIVE, "cold prefix cache"),
        ({"reports_cached": 0}, INCONCLUSIVE, "computed their whole prompt"),
        ({"metrics_frozen": True, "reports_cached": "right", "step_s": 0.004}, PASS, ""),
        (COUNTS_NO_TOKEN, INCONCLUSIVE, "warm prefix cache"),
        ({"metrics_reset": True}, INCONCLUSIVE, "nothing shows its state"),
        ({"others_cached": 3}, INCONCLUSIVE, "cold prefix cache"),
        ({"others_cached": 3, "reports_cached": "right"}, INCONCLUSIVE, "other clients may"),
        ({"cached_share": 0.8}, INCONCLUSIVE, "some computed their whole prompt"),
        ({"cached_share": 0.8, "reports_cached": "right"}, INCONCLUSIVE, "these requests comp"),
    ],
    ids=str,
    every=3,
)
def test_answers_from_a_cold_and_a_warm_cache_are_compared(tmp_path, faults, value, phrase):
    analysis = measured(tmp_path, faults, prefix_cache=("cold", "warm"))
    verdict = judge(analysis)
    reasons = " ".join(str(reason) for reason in verdict.reasons)
    assert verdict.value == value, reasons
    assert phrase in reasons


def test_only_the_warm_answers_differ_if_the_cache_changes_them(tmp_path):
    faults = {"flip_on_cached_prefix": True, "flip_at": 3}
    (group,) = measured(tmp_path, faults, prefix_cache=("cold", "warm")).groups
    differing = {row.placement for row in group.by_batch_size if row.differ_from_reference}
    assert {row.placement for row in group.by_batch_size} == {"cold cache", "warm cache"}
    assert differing == {"warm cache"}


def test_counters_of_each_state_are_in_the_run(tmp_path):
    run_ = measured(tmp_path, {}, prefix_cache=("cold", "warm")).run
    checks = {c.placement: c for c in run_.endpoint_checks if c.name.endswith("prefix cache")}
    assert {name: check.holds for name, check in checks.items()} == {
        "cold cache": True,
        "warm cache": True,
    }
    assert checks["cold cache"].sentence == "0 prompt tokens came from the prefix cache"


def test_prompt_that_fills_no_block_proves_nothing_of_a_warm_cache(tmp_path):
    options = {"prompts": ("Hi",), "chat_template": False, "prefix_cache": ("warm",)}
    verdict = judge(measured(tmp_path, {}, **options))
    assert verdict.value == INCONCLUSIVE
    assert "warm prefix cache" in " ".join(str(reason) for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("states", "message"),
    [(("hot",), "Unknown prefix cache 'hot'"), (("cold", "cold"), "once"), ((), "once")],
)
def test_unknown_state_is_refused(states, message):
    with pytest.raises(UsageError, match=message):
        ask(endpoints=["http://host/v1"], prefix_cache=states)


def test_places_of_two_endpoints():
    urls = ("http://a/v1", "http://b/v1")
    target = ask(endpoints=urls, prefix_cache=("as-is", "cold")).target
    assert target.placements == (
        *("endpoint 1", "endpoint 1 cold cache"),
        *("endpoint 2", "endpoint 2 cold cache"),
    )


def test_replies_prove_the_state_of_a_server_without_counters(tmp_path):
    faults = {"metrics": False, "reports_cached": "right", "step_s": 0.004}
    run_ = measured(tmp_path, faults, prefix_cache=("cold", "warm")).run
    checks = {c.placement: c for c in run_.endpoint_checks if c.name.endswith("prefix cache")}
    assert checks["cold cache"].sentence == "0 prompt tokens came from the prefix cache"
    assert checks["warm cache"].holds
    assert not checks["warm cache"].sentence.startswith("0 ")
