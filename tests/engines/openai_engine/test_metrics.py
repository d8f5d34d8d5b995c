"""Counters as servers print them, the evidence in them, and damaged or hostile texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweeps import few

from detcheck.engines.openai.metrics import Counters, cached_tokens, load_evidence, read
from detcheck.evidence import LoadEvidence

TEXTS = Path(__file__).parent / "metrics"


def text(name: str) -> str:
    return (TEXTS / f"{name}.txt").read_text(encoding="utf-8")


def captured(name: str) -> Counters:
    return read(text(name))


@pytest.fixture
def vllm() -> tuple[Counters, Counters, Counters]:
    return captured("vllm_before"), captured("vllm_during"), captured("vllm_after")


def test_vllm(vllm):
    before, during, after = vllm
    assert (before.server, before.running, before.iterations) == ("vllm", 0, 0)
    assert during.running == 64
    assert (after.generation_tokens, after.iterations, after.preemptions) == (9750, 302, 0)
    assert after.iteration_tokens[64.0] == 300
    assert after.iteration_tokens[float("inf")] == 302


def test_evidence_of_a_known_load(vllm):
    before, during, after = vllm
    assert load_evidence(before, [before, during, after], after, 65) == LoadEvidence(
        source="server counters",
        rows_max=64,
        rows_mean=round(9750 / 302, 3),
        query_tokens_max=2048,
        preemptions=0,
        prefix_cache_hits=0,
    )


def test_a_batch_between_two_polls_is_bounded_by_the_mean(vllm):
    before, _, after = vllm
    evidence = load_evidence(before, [before, after], after, 65)
    assert evidence is not None
    assert evidence.rows_max == 33  # of 64: the mean of 32.3, no less


def test_server_that_serves_one_request_at_a_time_is_recognised():
    before = read(vllm_text(tokens=0, iterations=0))
    after = read(vllm_text(tokens=300, iterations=300))
    busy = read(vllm_text(tokens=150, iterations=150, running=1))
    evidence = load_evidence(before, [busy], after, 2)
    assert evidence is not None
    assert (evidence.rows_max, evidence.rows_mean) == (1, 1.0)


def vllm_text(*, tokens: float, iterations: float, running: float = 0, extra: str = "") -> str:
    return (
        f'vllm:num_requests_running{{engine="0"}} {running}\n'
        f'vllm:generation_tokens_total{{engine="0"}} {tokens}\n'
        f'vllm:iteration_tokens_total_count{{engine="0"}} {iterations}\n{extra}'
    )


def test_counters_that_did_not_move_are_of_another_server(vllm):
    before, during, after = vllm
    assert load_evidence(after, [during], after, 1) is None
    assert load_evidence(before, [during], after, 9751) is None
    assert load_evidence(before, [during], after, 9750) is not None


def test_a_server_that_was_restarted_is_no_evidence(vllm):
    before, during, after = vllm
    assert load_evidence(after, [during], before, 1) is None


def hits(number: float, tokens: float) -> Counters:
    return Counters(server="vllm", running=1, generation_tokens=tokens, prefix_cache_hits=number)


@pytest.mark.parametrize(
    ("readings", "tokens"),
    [
        ([(0, 0), (48, 5), (96, 9)], 96),
        ([(0, 0), (48, 5), (0, 9)], None),  # started again after it was polled
        ([(7, 0), (3, 5), (9, 9)], None),
        ([(7, 0), (7, 0)], None),  # another server answered
    ],
)
def test_cached_tokens_are_not_known_if_their_count_starts_again(readings, tokens):
    before, *samples, after = [hits(*one) for one in readings]
    assert cached_tokens(before, samples, after, 5) == tokens


def test_nothing_running_and_no_iterations_is_no_evidence():
    idle = Counters(server="sglang", running=0, generation_tokens=5.0)
    busy = Counters(server="sglang", running=0, generation_tokens=500.0)
    assert load_evidence(idle, [idle], busy, 5) is None


def test_tokens_of_speculative_decoding_are_no_rows():
    accepted = "vllm:spec_decode_num_accepted_tokens_total {}\n"
    before = read(vllm_text(tokens=0, iterations=0, extra=accepted.format(0)))
    after = read(vllm_text(tokens=400, iterations=100, extra=accepted.format(300)))
    evidence = load_evidence(before, [], after, 1)
    assert evidence is not None
    assert (evidence.rows_max, evidence.rows_mean) == (1, 1.0)


def test_requests_of_two_engines_share_no_batch():
    counters = read(
        'vllm:num_requests_running{engine="0"} 30\nvllm:num_requests_running{engine="1"} 34\n'
        'vllm:generation_tokens_total{engine="0"} 5\nvllm:generation_tokens_total{engine="1"} 7\n'
    )
    assert (counters.running, counters.generation_tokens) == (34, 12)


@pytest.mark.parametrize(
    ("model", "running", "tokens"),
    [("small", 1, 5), ("large", 31, 900), ("an alias of small", 31, 905), (None, 31, 905)],
)
def test_requests_to_another_model_share_no_batch(model, running, tokens):
    counters = read(
        'vllm:num_requests_running{model_name="small"} 1\n'
        'vllm:num_requests_running{model_name="large"} 31\n'
        'vllm:generation_tokens_total{model_name="small"} 5\n'
        'vllm:generation_tokens_total{model_name="large"} 900\n',
        model,
    )
    assert (counters.server, counters.running) == ("vllm", running)
    assert counters.generation_tokens == tokens


def test_sglang_counts_once_a_rank_and_once_a_priority():
    counters = captured("sglang")
    assert (counters.server, counters.running) == ("sglang", 162)
    assert counters.generation_tokens == 7557572
    assert (counters.preemptions, counters.prefix_cache_hits) == (12, 61030)


def test_llamacpp_gives_a_mean_since_the_start():
    before = captured("llamacpp")
    after = read(
        text("llamacpp")
        .replace("n_decode_total 1000", "n_decode_total 1100")
        .replace("n_busy_slots_per_decode 1.5", "n_busy_slots_per_decode 1.7272727")
        .replace("tokens_predicted_total 3469", "tokens_predicted_total 3869")
    )
    evidence = load_evidence(before, [], after, 4)
    assert evidence is not None
    assert (evidence.rows_max, evidence.rows_mean) == (4, 4.0)


def test_tgi():
    counters = read("tgi_batch_current_size 7\ntgi_request_generated_tokens_sum 12\n")
    assert (counters.server, counters.running, counters.generation_tokens) == ("tgi", 7, 12)


@pytest.mark.parametrize("other", ["", "<html>404</html>", '{"detail": "Not Found"}', "up 1\n"])
def test_a_text_of_no_known_server(other):
    assert read(other) == Counters()
    assert load_evidence(Counters(), [], read(other), 1) is None


@pytest.mark.parametrize(
    "value", ["NaN", "-1", "+Inf", "1e400", "many", "", "0x10", "1 2 3", "٣", "1e30"]
)
def test_impossible_number_is_left_out(value):
    counters = read(
        f"vllm:num_requests_running {value}\nvllm:generation_tokens_total 5\n"
        f"vllm:num_preemptions_total {value}\n"
    )
    assert counters.generation_tokens == 5
    evidence = load_evidence(
        Counters("vllm", preemptions=0.0), [counters, Counters("vllm", running=3)], counters, 5
    )
    assert evidence is not None
    assert evidence.rows_max == 3
    assert evidence.preemptions is None


def test_readable_part_of_a_truncated_text_is_kept(vllm):
    whole = text("vllm_after")
    cut = read(
        whole[: whole.index("vllm:prefix_cache_hits_total{")] + "vllm:num_preemptions_total{e"
    )
    assert (cut.running, cut.prefix_cache_hits) == (0, None)


def test_timestamps_line_ends_and_escapes_are_read():
    counters = read('vllm:num_requests_running{model_name="a\\"}b, c=\\n"} 5 1395066363000\r\n')
    assert counters.running == 5


@few(
    "flood",
    [
        'vllm:num_requests_running{a="' * 200_000,
        "vllm:" + "a" * 5_000_000 + " 1",
        'vllm:x{a="' + "\\" * 5_000_000,
        'vllm:num_requests_running{a="b"} 7\n' * 100_000,
        "vllm:num_requests_running " + "9" * 5_000_000,
    ],
)
def test_text_without_end_is_read_in_bounded_time(flood):
    assert read(flood).running in (None, 7)


NAMES = st.sampled_from(
    [
        *("vllm:num_requests_running", "vllm:generation_tokens_total"),
        *("vllm:iteration_tokens_total_count", 'vllm:iteration_tokens_total_bucket{le="8.0"}'),
        *('vllm:iteration_tokens_total_bucket{le="1e300"}', "vllm:num_preemptions_total"),
        *("llamacpp:n_decode_total", "llamacpp:n_busy_slots_per_decode"),
    ]
)
LINES = st.one_of(st.text(), st.builds(lambda name, value: f"{name} {value!r}", NAMES, st.floats()))


@given(st.tuples(*[st.lists(LINES).map("\n".join)] * 3), st.integers(0, 10))
def test_evidence_from_any_text_is_sound_or_absent(texts, requests):
    before, during, after = map(read, texts)
    evidence = load_evidence(before, [during], after, requests)
    if evidence is not None:
        assert 1 <= evidence.rows_max < 2**31
        assert 0 <= (evidence.query_tokens_max or 0) < 2**31
        assert evidence.preemptions is None or 0 <= evidence.preemptions < 2**31
