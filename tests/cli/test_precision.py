"""Servers that round their log-probabilities cannot be judged by bits."""

from __future__ import annotations

import json

import pytest
from servers.faults import Faults
from servers.running import serve
from sweeps import few

from detcheck.rundir import load

QUICK = {"quiet_s": 0.01, "answer_tokens": 6}
ASKED = ("-n", "40", "-b", "1,8", "--max-new-tokens", "6", "-o", "run")


@pytest.fixture
def verdict(detcheck):
    """Returns a function: faults, options of the gate -> (verdict, its reasons)."""

    def judged(faults, *options):
        with serve(Faults(**QUICK | faults)) as server:
            assert detcheck("run", "--endpoint", server.url, *ASKED).code == 0
        document = json.loads(detcheck("gate", "run", "--json", *options).out)
        return document["verdict"], " ".join(document["reasons"])

    return judged


@few(
    ("fault", "words"),
    [
        ({"logprob_decimals": 4}, "rounds its log-probabilities to 4 decimals"),
        ({"logprob_decimals": 0}, "rounds its log-probabilities to 0 decimals"),
        ({"logprob_bits": 8}, "rounds its log-probabilities to 8 bits"),
    ],
    every=2,
)
def test_a_difference_that_rounding_hides_does_not_pass_by_bits(verdict, fault, words):
    value, reasons = verdict({"noise": 1e-6} | fault, "--level", "bits")
    assert value == "inconclusive", reasons
    assert words in reasons
    checks = {check.name: check.sentence for check in load("run").endpoint_checks}
    assert words.removeprefix("rounds its log-probabilities ") in checks["logprobs"]


@pytest.mark.sweep
def test_by_tokens_rounding_does_not_matter(verdict):
    assert verdict({"logprob_decimals": 4})[0] == "pass"


def test_a_difference_that_is_larger_than_the_rounding_fails(verdict):
    assert verdict({"noise": 0.3, "logprob_decimals": 4}, "--level", "bits")[0] == "fail"


def test_unrounded_log_probabilities_are_judged_by_bits(verdict):
    value, reasons = verdict({}, "--level", "bits")
    assert value == "pass", reasons


def test_a_small_difference_of_unrounded_ones_fails_by_bits(verdict):
    value, reasons = verdict({"noise": 1e-6}, "--level", "bits")
    assert value == "fail"
    assert "differ in some bit" in reasons
