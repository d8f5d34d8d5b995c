"""The engine against a server: each fault that is planted there is reported."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sweeps import few

from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.engines.openai import endpoint as endpoints
from detcheck.engines.openai.connection import Connection
from detcheck.gate import PASS, Verdict, judge
from detcheck.prompts import ChatMessage, PromptItem


def verdict(analysis) -> Verdict:
    return judge(analysis)


@few("chat_template", [True, False])
def test_sound_server_passes_with_every_request_in_flight(serve, measure, chat_template):
    server = serve()
    analysis = measure(server, chat_template=chat_template)
    (group,) = analysis.groups
    assert (group.distinct, group.completions, group.failed) == (1, 27, 0)
    assert group.evidence.sentence == "batches of up to 8 of 8 asked, by overlapping streams"
    assert server.behaviour.most_in_flight == 8
    assert group.reference.variant.fingerprint.startswith("sha256:")
    assert verdict(analysis).value == PASS, verdict(analysis).reasons


@pytest.mark.parametrize(
    ("fingerprints", "revision"), [(("fp_1",), "fp_1"), (("fp_1", "fp_2"), None)]
)
def test_the_model_is_identified_by_its_name_and_a_constant_fingerprint(
    serve, measure, fingerprints, revision
):
    identity = measure(serve(fingerprints=fingerprints)).run.model
    assert identity.name == "toy"
    assert identity.revision == revision


@few("token_ids", [True, False])
@few("chat_template", [True, False])
def test_a_planted_difference_is_found_at_its_token(serve, measure, token_ids, chat_template):
    analysis = measure(
        serve(differ_above=4, token_ids=token_ids), chat_template=chat_template, completions=40
    )
    (group,) = analysis.groups
    assert group.distinct == 2
    (divergence,) = group.divergences
    texts = divergence.context, divergence.variant.text
    assert divergence.flip.runner_up_won is True, texts
    assert divergence.flip.reference_gap == pytest.approx(1.25)
    if token_ids:
        assert divergence.position == 3
    else:
        assert divergence.variant.token_ids is None
        assert divergence.variant.fingerprint.startswith("sha256-text:")
    assert verdict(analysis).value == FAIL


@few("fields", [{"serial": True}, {"greets_first": True}])
def test_a_server_that_never_batches_is_recognised(serve, measure, fields):
    analysis = measure(serve(**fields))
    (group,) = analysis.groups
    assert "one request at a time: no batch was ever formed" in group.evidence.sentence
    assert verdict(analysis).value == INCONCLUSIVE


def test_replies_in_one_piece_are_no_evidence(serve, measure):
    analysis = measure(serve(one_piece=True))
    assert analysis.groups[0].evidence.sentence.startswith("no batches were observed")
    assert verdict(analysis).value == INCONCLUSIVE


def after_sanity(kind: str, *, every: int = 3):
    """Plant a fault in every so many requests of the experiment; the checks ask other prompts."""
    count = 0

    def fault(number: int, body: dict[str, Any]) -> str | None:
        nonlocal count
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        if "Tell me about Richard" not in prompt:
            return None
        count += 1
        return kind if count % every == 0 else None

    return fault


@few(
    ("planted", "kind"),
    [
        ("500", "http 5xx"),
        ("reset", "reset"),
        ("truncate", "truncated"),
        ("malformed", "malformed"),
        ("latin1", "malformed"),
        ("flood", "malformed"),
        ("stall", "timeout"),
    ],
    every=3,
)
def test_failures_are_counted_by_kind_and_make_the_verdict_inconclusive(
    serve, measure, planted, kind
):
    server = serve(fault=after_sanity(planted))
    patience = Connection(first_token_s=3.0) if planted == "stall" else Connection()
    analysis = measure(server, connection=patience)
    (group,) = analysis.groups
    assert group.completions + group.failed == 27
    assert dict(group.failures) == {kind: 9}
    judged = verdict(analysis)
    assert judged.value == INCONCLUSIVE
    assert any(f"9 {kind}" in reason for reason in judged.reasons)


@pytest.mark.parametrize(("differ_above", "distinct"), [(None, 1), (4, 2)])
def test_replies_with_and_without_ids_are_one_answer_if_their_text_is(
    serve, measure, differ_above, distinct
):
    analysis = measure(serve(ids_every=2, differ_above=differ_above))
    (group,) = analysis.groups
    assert {v.fingerprint.split(":")[0] for v in analysis.run.variants} == {"sha256", "sha256-text"}
    assert group.distinct == distinct
    assert verdict(analysis).value == (PASS if distinct == 1 else FAIL)


@few("planted", ["429", "503"])
def test_request_that_generated_nothing_is_sent_again_and_counted(serve, measure, planted):
    analysis = measure(serve(fault=after_sanity(planted, every=4)))
    (group,) = analysis.groups
    assert (group.completions, group.failed) == (27, 0)
    assert sum(row.retries for row in group.by_batch_size) > 0


def test_request_that_generated_tokens_is_never_sent_again(serve, measure):
    analysis = measure(serve(fault=after_sanity("truncate", every=4)))
    assert sum(row.retries for row in analysis.groups[0].by_batch_size) == 0


def test_a_server_that_only_fails_ends_its_conditions(serve, measure, monkeypatch):
    monkeypatch.setattr(endpoints, "FIRST_PAUSE_S", 0.0)
    analysis = measure(serve(fault=after_sanity("500", every=1)), completions=60)
    errors = [record.error for record in analysis.run.conditions]
    assert all("No answer came back in 3 trials" in error for error in errors)
    assert verdict(analysis).value == INCONCLUSIVE


def test_endpoints_are_compared_with_each_other(serve, measure):
    sound, other = serve(), serve(differ_above=4)
    analysis = measure(sound, other)
    (group,) = analysis.groups
    assert group.asked == 54
    rows = [(row.placement, row.batch_size) for row in group.by_batch_size]
    assert rows == [
        ("endpoint 1", 1), ("endpoint 1", 8), ("endpoint 2", 1), ("endpoint 2", 8),
    ]  # fmt: skip
    differing = {row.placement for row in group.by_batch_size if row.differ_from_reference}
    assert differing == {"endpoint 2"}


def test_open_loop_arrivals_are_spread_in_time(serve, measure):
    server = serve(token_s=0.01)
    analysis = measure(server, arrivals="poisson:40", completions=16, batch_sizes=(8,))
    assert "under open-loop arrivals" in analysis.groups[0].evidence.sentence
    assert server.behaviour.most_in_flight > 1


def test_counters_that_stand_still_are_not_used(serve, measure):
    text = "vllm:num_requests_running 6\nvllm:generation_tokens_total {}\n"
    server = serve(metrics=text.format(0), token_s=0.01)
    analysis = measure(server)
    # Counters that stand still are another server's: streams are the evidence.
    assert "overlapping streams" in analysis.groups[0].evidence.sentence


def test_sampling_with_one_seed_is_one_answer(serve, measure):
    sound = measure(serve(), temperature=0.8)
    assert sound.groups[0].distinct == 1
    assert verdict(sound).value == PASS


def test_a_server_that_ignores_the_seed_fails_and_its_check_says_why(serve, measure):
    analysis = measure(serve(ignores_seed=True), temperature=0.8)
    judged = verdict(analysis)
    assert judged.value == FAIL
    assert any("same seed gave other samples" in reason for reason in judged.reasons)


@pytest.mark.sweep
def test_a_thousand_in_flight(serve, measure):
    server = serve()

    def slow_down(number: int, body: dict[str, Any]) -> None:
        if "Tell me about Richard" in body["messages"][0]["content"]:
            server.behaviour.token_s = 0.5

    server.behaviour.fault = slow_down
    analysis = measure(server, batch_sizes=(1000,), completions=1000, max_new_tokens=4)
    assert server.behaviour.most_in_flight == 1000
    assert analysis.groups[0].completions == 1000


def test_an_endpoint_is_measured_inside_a_running_event_loop(serve, measure):
    server = serve()

    async def notebook():
        return measure(server)

    analysis = asyncio.run(notebook())
    assert analysis.groups[0].completions == 27
    assert server.behaviour.most_in_flight == 8


def test_a_chat_reaches_the_server_as_its_messages(serve, measure):
    chat = (ChatMessage("system", "Be short."), ChatMessage("user", "Why?"))
    sent: list[Any] = []

    def note(number: int, body: dict[str, Any]) -> None:
        if len(body["messages"]) > 1:
            sent.append(body["messages"])

    server = serve()
    server.behaviour.fault = note
    item = PromptItem(messages=chat, answer="6")
    measure(server, prompts=("known as this",), items=(item,), batch_sizes=(1, 2), completions=4)
    assert len(sent) == 4
    assert sent[0][0] == {"role": "system", "content": "Be short."}
