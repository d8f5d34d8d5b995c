"""Two URLs of one server are recognised by any one of several signs; two servers never are."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from asking import ask
from servers.faults import Faults
from servers.running import serve as misbehave
from sweeps import few

from detcheck.analysis import analyse
from detcheck.analysis.evidence import INCONCLUSIVE
from detcheck.engines.openai.client import Address
from detcheck.engines.openai.same_server import (
    Sighting,
    _counted_in_turn,
    _is_specific,
    _number,
    _one_place,
)
from detcheck.gate import PASS, judge
from detcheck.runner import run

SLOW = {"step_s": 0.004}
NO_SIGN = {"metrics": False, "random_ids": True, **SLOW}


def judged(folder, *urls: str):
    asked = ask(endpoints=urls, batch_sizes=(1, 8), completions=24, max_new_tokens=20)
    return judge(analyse(run(*asked, folder / "run")))


@few(
    ("faults", "sign"),
    [
        ({"random_ids": True}, "their counters move together"),
        ({"metrics": False, **SLOW}, "counted by one counter"),
        ({**NO_SIGN, "instance": "vllm-7f9c-abc12"}, "header x-served-by: vllm-7f9c-abc12"),
    ],
)
def test_two_urls_of_one_server_are_no_comparison(tmp_path, faults, sign):
    with misbehave(Faults(**faults)) as served:
        verdict = judged(tmp_path, served.url, served.other_url)
    assert verdict.value == INCONCLUSIVE
    assert f"it is the server of endpoint 1 ({sign}" in " ".join(verdict.reasons).replace(
        "the ids of their replies are ", ""
    ).replace("both answer with the ", "")


@pytest.mark.sweep
def test_two_names_of_one_address_are_no_comparison(tmp_path):
    with misbehave(Faults(**NO_SIGN)) as served:
        verdict = judged(tmp_path, served.url, served.url.replace("127.0.0.1", "localhost"))
    assert verdict.value == INCONCLUSIVE
    assert "both URLs lead to one port of this machine" in " ".join(verdict.reasons)


HERE, OTHER = Address("127.0.0.1", 8000, is_here=True), Address("10.0.0.9", 8000, is_here=False)
WEB = Address("10.0.0.9", 443, is_here=False)


@pytest.mark.parametrize(
    ("urls", "addresses", "words"),
    [
        (("http://127.0.0.1:8000/v1", "http://box:8000/v1"), (HERE, HERE), "this machine"),
        (("http://gpu:8000/v1", "http://gpu.lan:8000/v1"), (OTHER, OTHER), "one address"),
        (("https://a.org/v1", "https://a.org:443/v1"), (WEB, WEB), "one address"),
        (("https://a.org/v1", "https://b.org/v1"), (WEB, WEB), None),  # names behind one proxy
        (("http://gpu:8000/one/v1", "http://gpu:8000/two/v1"), (OTHER, OTHER), None),
        (("http://127.0.0.1:8000/v1", "http://gpu:8000/v1"), (HERE, OTHER), None),
        (("http://gpu:8000/v1", "http://gpu.lan:8000/v1"), (OTHER, None), None),
    ],
)
def test_names_of_one_port(urls, addresses, words):
    sign = _one_place(*urls, *addresses)
    assert sign is None if words is None else words in (sign or "")


@few("faults", [{}, {"metrics": False, **SLOW}, {"instance": "vllm"}], ids=str)
def test_two_equal_servers_are_compared(tmp_path, faults):
    with ExitStack() as held:
        servers = [held.enter_context(misbehave(Faults(**faults))) for _ in range(2)]
        verdict = judged(tmp_path, *(served.url for served in servers))
    assert verdict.value == PASS, verdict.reasons


@pytest.mark.parametrize(
    ("step", "ours", "theirs", "same"),
    [
        (1, [10, 12], [11, 13], True),
        (1, [10, 14], [12, 16], True),  # another client asks too
        (1, [10, 11], [10, 11], False),
        (2, [10, 12], [11, 13], False),  # each counts by two
        (1, [10, 12], [110, 112], False),
        (None, [10, 12], [11, 13], False),
        (1, [10], [11, 13], False),
    ],
)
def test_one_counter_of_ids(step, ours, theirs, same):
    assert _counted_in_turn(Sighting(ours, step), Sighting(theirs, step)) is same


def test_number_of_an_id():
    assert _number("cmpl-42") == 42
    assert _number("chatcmpl-0000002a") == 42
    assert _number(None) is _number("chatcmpl-") is _number("cmpl-" + "a" * 32) is None
    import time

    for scale in (1, 1000, 10**6):
        assert _number(f"cmpl-{int(time.time() * scale)}") is None


@pytest.mark.parametrize(
    ("value", "specific"),
    [
        ("vllm-7f9c-abc12", True),
        ("10.0.0.3:8000", True),
        ("vllm-0.32.0", False),
        ("nginx/1.25", False),
        ("default", False),
        ("gpu1", False),
    ],
)
def test_header_that_names_an_instance(value, specific):
    assert _is_specific(value) is specific
