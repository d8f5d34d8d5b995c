"""`detcheck trace` on the command line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from detcheck.probes import trace as trace_module
from detcheck.probes.trace_results import FirstOp, FlipSide, LayerGrowth, Trace, TraceFlip

FLIP = TraceFlip(3, True, FlipSide(7, " sea", " see", 0.0), FlipSide(8, " see", " sea", 0.5), 0.25)
FIRST = FirstOp(
    "aten::linear", "layers.0.q_proj", 1, (1, 1, 8), (4, 1, 8), 1, 1, 3, 1, indirect=False
)
LAYERS = tuple(LayerGrowth(f"layers.{i}", 8, i, i, i / 9) for i in range(30))


@pytest.fixture
def traced(monkeypatch):
    """What the command is given for a trace; returns what it asked for."""
    asked = []

    def give(found):
        def trace(subject, kernels=None):
            asked.append((subject, kernels))
            return found

        monkeypatch.setattr(trace_module, "trace", trace)
        return asked

    return give


def found(first, layers=()):
    return Trace("stock", 4, first, layers, FLIP, 1234, 2345, 2, 0.5)


def test_json_is_the_contract(detcheck, traced):
    traced(found(FIRST, LAYERS))
    result = detcheck("trace", "-p", "Hi", "-b", "1,4", "--json")
    data = json.loads(result.out)
    assert {"op", "module", "reference_shape", "shape", "rows_differ", "max_ulp"} < set(
        data["first"]
    )
    assert len(data["layers"]) == 30
    assert data["flip"]["flipped"] is True


def test_nothing_found_is_null_and_says_what_was_compared(detcheck, traced):
    asked = traced(found(None))
    args = ("trace", "-p", "Hi", "-k", "batch-invariant")
    assert json.loads(detcheck(*args, "--json").out)["first"] is None
    assert "1,234 ops (2,345 tensors) in 2 forward passes agree" in detcheck(*args).out
    subject, kernels = asked[0]
    assert kernels == "batch-invariant"
    assert len(subject.trial.requests) == 8


def test_the_text_names_the_op_and_fits_80_columns(detcheck, traced, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    traced(found(FIRST, LAYERS))
    out = detcheck("trace", "-p", "Hi").out
    assert "aten::linear in layers.0.q_proj" in out
    assert "decode step 1: 1×1×8 alone, 4×1×8 among 4" in out
    assert "“ see” before “ sea” by 0.5" in out
    assert "layers.29" in out
    assert len(out.splitlines()) < 30
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "Give a RUN"),
        (("nowhere",), "no run directory"),
        (("nowhere", "-p", "Hi"), "A run already has its options"),
        (("-p", "Hi", "-b", "4,8"), "alone with the same in a batch"),
        (("-p", "Hi", "-b", "four"), "whole numbers"),
        (("-p", "Hi", "-k", "magic"), "Unknown kernels"),
        (("-p", "Hi", "-k", "stock,batch-invariant"), "one kernels setting"),
        (("-p", "Hi", "--engine", "magic"), "Unknown engine"),
        (("-p", "Hi", "--model", "./nowhere"), "no folder ./nowhere"),
    ],
)
def test_bad_input_is_one_sentence(detcheck, args, words):
    result = detcheck("trace", *args)
    assert result.code == 2
    assert words in result.only_sentence


def test_a_scripted_run_is_refused(detcheck, planted_run):
    result = detcheck("trace", planted_run().path)
    assert result.code == 2
    assert "has no ops to trace" in result.only_sentence


def test_decoding_is_compared_with_prefilling(detcheck, monkeypatch):
    from detcheck import models
    from detcheck.engines import prompts
    from detcheck.probes import decode_trace

    asked = []
    first = FirstOp("aten::mm", "layers.0", 2, (1, 1, 8), (1, 9, 8), 1, 1, 3, 2, indirect=False)
    traced = decode_trace.DecodeTrace("stock", first, LAYERS, 0.125, 1234, 2345, 3)
    loaded = SimpleNamespace(tokenizer=object())
    monkeypatch.setattr(prompts, "encode_prompt", lambda *args, **options: (1, 2, 3))
    monkeypatch.setattr(models, "load", lambda _, **options: asked.append(options) or loaded)
    monkeypatch.setattr(
        decode_trace, "trace_decoding", lambda *args: asked.append(args[1:]) or traced
    )
    result = detcheck("trace", "--mismatch", "-p", "Hi", "--dtype", "float32")
    assert result.code == 0
    assert "First op that differs: aten::mm in layers.0" in result.out
    assert "at decode step 3: 1×1×8 decoded, 1×9×8 prefilled" in result.out
    assert asked == [{"dtype": "float32"}, ((1, 2, 3), "stock", 100)]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--mismatch",), "Give a prompt with -p"),
        (("--mismatch", "-p", "Hi", "-b", "1,4"), "--mismatch traces a prompt without load"),
        (
            ("--mismatch", "-p", "Hi", "--max-new-tokens", "0"),
            "--max-new-tokens must be at least 1",
        ),
    ],
)
def test_a_trace_of_decoding_that_makes_no_sense_is_refused(detcheck, args, sentence):
    result = detcheck("trace", *args)
    assert result.code == 2
    assert sentence in result.only_sentence
