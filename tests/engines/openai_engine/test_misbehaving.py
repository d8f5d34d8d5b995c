"""A table: each fault of the misbehaving server, and the verdict and reason that it must give."""

from __future__ import annotations

import logging
import re

import pytest
from asking import ask
from servers.faults import Faults
from servers.running import serve as misbehave
from sweeps import few

from detcheck.analysis import analyse
from detcheck.analysis.evidence import FAIL, INCONCLUSIVE
from detcheck.engines import Connection
from detcheck.errors import DetcheckError
from detcheck.gate import PASS, judge
from detcheck.runner import run

SLOW = {"step_s": 0.004}
"""Slow steps, so that arrival times tell them apart."""
SPARSE = {"rate": 0.2}
TABLE = [
    # fault, options, verdict (None: an error), a phrase of its reasons
    ({}, {}, PASS, "0 of 24 comparisons differed"),
    ({"preempt_every": 5}, {}, PASS, ""),
    ({"buffered": True}, {}, PASS, ""),
    ({"metrics": False, **SLOW}, {}, PASS, ""),
    ({"metrics_frozen": True, **SLOW}, {}, PASS, ""),
    ({"refuses": ("return_token_ids", "seed")}, {}, PASS, ""),
    ({"refuses": ("temperature",), "forced_temperature": 0.0}, {}, PASS, "takes no temperature"),
    ({"flip_at": 5}, {}, FAIL, "position 5"),
    ({"flip_at": 5}, {"chat_template": False}, FAIL, "position 5"),
    ({"flip_at": 5, "flip_gap": 3.0}, {}, FAIL, "confident"),
    ({"flip_at": 5, "gives_token_ids": False}, {}, FAIL, "(tie)"),
    ({"flip_at": 5, "gives_token_ids": False, "gives_logprobs": False}, {}, FAIL, "no log-prob"),
    ({"flip_at": 3, "flip_on_cached_prefix": True}, {}, FAIL, "without the prefix cache"),
    ({"replica_differs": True, "system_fingerprints": ("a", "b")}, {}, FAIL, "replicas"),
    ({"ignores_seed": True}, {"temperature": 0.8}, FAIL, "same seed gave other samples"),
    ({"forced_temperature": 1.0, "ignores_seed": True}, {}, FAIL, "equal requests"),
    ({"forced_temperature": 1.0}, {}, INCONCLUSIVE, "samples at temperature 0"),
    ({"ignores_max_tokens": True}, {}, PASS, "of 12 that were allowed"),
    ({"max_num_seqs": 1}, {}, INCONCLUSIVE, "no batch was ever formed"),
    ({"max_num_seqs": 1, "metrics": False, **SLOW}, {}, INCONCLUSIVE, "no batch was ever formed"),
    ({"max_num_seqs": 4}, {}, INCONCLUSIVE, "up to 4 where 8 were asked"),
    ({"max_num_seqs": 4, "metrics": False, **SLOW}, {}, INCONCLUSIVE, "up to 4 where 8"),
    ({"buffered": True, "metrics": False}, {}, INCONCLUSIVE, "no batches were observed"),
    ({"others": 2, **SLOW}, {}, PASS, ""),
    ({"others": 30, **SLOW}, {}, INCONCLUSIVE, "the load hardly varied"),
    ({"others": 30, "max_num_seqs": 1, "buffered": True}, {}, INCONCLUSIVE, "hardly varied"),
    ({"cache": True}, {}, INCONCLUSIVE, "come from a cache"),
    ({"id_pool": 40}, {}, PASS, "small pool"),
    ({"one_answer": True}, {}, INCONCLUSIVE, "different prompts got one answer"),
    ({"refused_temperature": 0.0}, {"temperature": 0.7}, PASS, ""),
    ({"refused_temperature": 0.7}, {"temperature": 0.7}, INCONCLUSIVE, "at temperature 0.7"),
    ({"forced_temperature": 0.0}, {"temperature": 0.7}, INCONCLUSIVE, "seed may be ignored"),
    ({"one_seed_a_batch": True}, {"temperature": 0.9}, INCONCLUSIVE, "all with one seed"),
    (
        {"ignores_seed_on": "/v1/completions"},
        {"temperature": 0.9},
        PASS,
        "seed on /completions): the same seed gave other samples",
    ),
    (
        {"ignores_seed_on": "/v1/completions"},
        {"temperature": 0.9, "chat_template": False},
        FAIL,
        "seed): the same seed gave other samples",
    ),
    ({"middle_reason": ""}, {}, PASS, ""),
    ({"middle_reason": "", "truncate": True, **SPARSE}, {}, INCONCLUSIVE, "truncated"),
    ({"middle_reason": "stop", "truncate": True, **SPARSE}, {}, INCONCLUSIVE, "truncated"),
    ({"last_reason": None}, {}, PASS, ""),
    ({"last_reason": "cancelled"}, {}, None, "gave up on the request (cancelled)"),
    ({"thinking": "parts"}, {}, PASS, ""),
    ({"thinking": "parts", "shown_at": 2, "gives_token_ids": False}, {}, FAIL, ""),
    ({"shown_at": 2}, {}, INCONCLUSIVE, "equal token ids came with different texts"),
    ({"shown_at": 2, "ids_missing_at": 2}, {}, FAIL, ""),
    ({"thinking": "both"}, {}, PASS, ""),
    ({"repeats_whole": "message"}, {}, PASS, ""),
    ({"repeats_whole": "delta"}, {}, PASS, ""),
    ({"content_type": "application/json"}, {}, PASS, ""),
    ({"whole": True, "content_type": "text/event-stream"}, {}, PASS, ""),
    ({"body": "object-error", "whole": True}, {}, None, "The model is loading"),
    ({"body": "words", "whole": True}, {}, None, "upstream connect error"),
    ({"status": 500, **SPARSE}, {}, INCONCLUSIVE, "http 5xx"),
    ({"status": 404, **SPARSE, "flip_seed": 1}, {}, INCONCLUSIVE, "http 4xx"),
    ({"status": 429, "retry_after": "0", **SPARSE}, {}, PASS, ""),
    ({"status": 429, "retry_after": "3600", **SPARSE}, {}, INCONCLUSIVE, "http 429"),
    ({"drop": "before", **SPARSE}, {}, INCONCLUSIVE, "reset"),
    ({"drop": "middle", **SPARSE}, {}, INCONCLUSIVE, "reset"),
    ({"truncate": True, **SPARSE}, {}, INCONCLUSIVE, "truncated"),
    ({"stall": "first", **SPARSE}, {}, INCONCLUSIVE, "timeout"),
    ({"flood": "tokens", **SPARSE}, {}, INCONCLUSIVE, "malformed"),
    ({"flood": "line", **SPARSE}, {}, INCONCLUSIVE, "malformed"),
    ({"flood": "header", **SPARSE}, {}, INCONCLUSIVE, "malformed"),
    ({"encoding": "utf-16", **SPARSE}, {}, INCONCLUSIVE, "malformed"),
    ({"encoding": "invalid", **SPARSE}, {}, INCONCLUSIVE, "malformed"),
]


def name_of(row) -> str:
    return ",".join(f"{key}={value}" for key, value in (row[0] | row[1]).items()) or "clean"


@few("row", TABLE, ids=name_of, every=16)
def test_planted_fault_gives_its_verdict(row, tmp_path):
    faults, asked, value, phrase = row
    with misbehave(Faults(**faults)) as served:
        hurried = "stall" in faults or faults.get("retry_after") == "3600"
        patience = Connection().within(3.0) if hurried else Connection()
        if value is None:
            with pytest.raises(DetcheckError, match=re.escape(phrase)):
                measured(served.url, tmp_path, asked, patience)
            return
        verdict = measured(served.url, tmp_path, asked, patience)
    assert verdict.value == value, verdict.reasons
    assert phrase in " ".join(verdict.reasons)


def analysed(url: str, folder, asked, connection: Connection | None = None):
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    small = {"batch_sizes": (1, 8), "completions": 27, "max_new_tokens": 20}
    experiment, target = ask(endpoints=[url], **(small | asked))
    return analyse(run(experiment, target, folder / "run", connection=connection))


def measured(url: str, folder, asked, connection: Connection | None = None):
    return judge(analysed(url, folder, asked, connection))


@few(
    "faults",
    [
        {"thinking": "parts"},
        {"thinking": "reasoning_content"},
        {"thinking": "both"},
        {"repeats_whole": "message"},
        {"repeats_whole": "delta"},
        {"thinking": "both", "whole": True},
    ],
    ids=str,
    every=3,
)
def test_answer_in_another_form_is_the_same_answer(faults, tmp_path):
    texts = set()
    for number, planted in enumerate(({}, faults)):
        with misbehave(Faults(**planted)) as served:
            run = analysed(served.url, tmp_path / str(number), {"completions": 8}).run
        texts |= {variant.text for variant in run.variants}
        assert sum(record.unseen_tokens for record in run.conditions) == 0
    assert len(texts) == 1


def test_tokens_that_were_never_shown_are_counted_in_the_run(tmp_path):
    with misbehave(Faults(thinking="hidden", gives_token_ids=False)) as served:
        run = analysed(served.url, tmp_path, {"completions": 8, "batch_sizes": (1, 4)}).run
    assert [record.unseen_tokens for record in run.conditions] == [
        4 * record.completed for record in run.conditions
    ]


@pytest.mark.parametrize(
    "faults",
    [
        {"status": 500},
        {"truncate": True},
        {"drop": "before"},
        {"encoding": "utf-16"},
        {"not_an_api": True},
        {"api_key": "right"},
        {"key_refused": 403, "api_key": "right"},
        {"redirect_to": "http://127.0.0.1:9"},
        {"max_model_len": 16},
    ],
    ids=str,
)
def test_unusable_server_gives_one_sentence(faults, tmp_path):
    with misbehave(Faults(**faults)) as served, pytest.raises(DetcheckError) as caught:
        measured(served.url, tmp_path, {})
    assert str(caught.value).endswith(".")
    assert caught.value.exit_code in (2, 3)
    assert not (tmp_path / "run").exists()
