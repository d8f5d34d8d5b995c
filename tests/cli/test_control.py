"""`run --control-endpoint`: a second server under the same load, which is the gate's control."""

from __future__ import annotations

import json

import pytest
from servers.faults import Faults
from servers.running import serve

from detcheck.rundir import load

QUICK = {"quiet_s": 0.01, "answer_tokens": 6}
ASKED = ("-n", "40", "-b", "1,8", "--max-new-tokens", "6", "-o", "run")


@pytest.mark.sweep
@pytest.mark.parametrize(("faults", "code"), [({"flip_at": 3}, 0), ({"noise": 0.01}, 0), ({}, 3)])
def test_a_control_that_moves_lets_the_other_pass(detcheck, faults, code):
    with serve(Faults(**QUICK)) as sound, serve(Faults(**QUICK | faults)) as control:
        options = ("--endpoint", sound.url, "--control-endpoint", control.url)
        assert detcheck("run", *options, *ASKED).code == 0
    assert load("run/control").target.endpoints == (control.url,)
    result = detcheck("gate", "run", "--require-control", "--json")
    assert result.code == code, result.out
    document = json.loads(result.out)
    assert document["verdict"] == {0: "pass", 3: "inconclusive"}[code]


def test_without_a_control_it_is_said(detcheck):
    with serve(Faults(**QUICK)) as sound:
        assert detcheck("run", "--endpoint", sound.url, *ASKED).code == 0
    assert "No control was measured" in detcheck("gate", "run").out
    assert detcheck("gate", "run", "--require-control").code == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--control-endpoint", "http://h/v1"), "for servers: give --endpoint URL."),
        (
            ("--endpoint", "http://h/v1", "--control-endpoint", "http://h/v1/"),
            "names a server that is judged",
        ),
        (("--endpoint", "http://h/v1", "--control-endpoint", "nonsense"), "not the base URL"),
    ],
)
def test_a_control_that_makes_no_sense(detcheck, options, words):
    result = detcheck("run", *options, *ASKED)
    assert result.code == 2
    assert words in result.only_sentence


def test_a_control_that_is_the_judged_server_by_another_name_is_refused(detcheck):
    with serve(Faults(**QUICK)) as sound:
        other = sound.url.replace("127.0.0.1", "localhost")
        options = ("--endpoint", sound.url, "--control-endpoint", other)
        result = detcheck("run", *options, *ASKED)
    assert result.code == 2
    assert "--control-endpoint is the server at http://127.0.0.1" in result.only_sentence


def test_a_control_that_serves_another_model_is_refused(detcheck):
    with serve(Faults(**QUICK)) as sound, serve(Faults(served=("huge",), **QUICK)) as control:
        options = ("--endpoint", sound.url, "--control-endpoint", control.url)
        assert detcheck("run", *options, *ASKED).code == 0
    result = detcheck("gate", "run")
    assert result.code == 2
    assert "its name is huge, the run's is tiny" in result.only_sentence
