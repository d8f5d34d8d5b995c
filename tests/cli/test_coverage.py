"""`detcheck coverage`."""

from __future__ import annotations

import gc
import json

import pytest
import transformers as T

from detcheck.kernels.op_rules import EVEN
from detcheck.models.tiny import WEIGHT_ONLY, quantisation


def test_a_covered_architecture(detcheck):
    result = detcheck("coverage", "mixtral", "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert (found["level"], found["reason"], found["uncovered"]) == ("fully-invariant", None, [])
    by = {one["op"]: one["by"] for one in found["covered"]}
    assert by["transformers::sdpa"] == "the attention kernels"
    assert by["aten::topk"] == "the reduce kernels"


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("llama", "detcheck run MODEL -k stock,fully-invariant"),
        ("LlamaForCausalLM", "detcheck run MODEL -k stock,fully-invariant"),
        ("gptj", "detcheck run MODEL -k stock,fully-invariant --engine static"),
        ("deepseek_v3", "detcheck run MODEL -k stock,fully-invariant --engine static"),
        ("mamba", "detcheck run MODEL -k stock,batch-invariant --engine static"),
        ("bart", "detcheck run MODEL -k stock,fully-invariant --engine static"),
    ],
)
def test_the_command_that_measures_it_names_an_engine_that_can(detcheck, name, command):
    """Of an architecture alone no model is known, and MODEL stands for one."""
    assert json.loads(detcheck("coverage", name, "--json").out)["measure"] == command


def test_a_refused_model_has_no_command(detcheck, monkeypatch):
    monkeypatch.setattr("detcheck.kernels.op_rules.EVEN", EVEN - {"cos"})
    assert json.loads(detcheck("coverage", "llama", "--json").out)["measure"] is None


def test_a_tiny_model_that_cannot_be_built_says_what_checks_the_model_itself(detcheck):
    result = detcheck("coverage", "whisper")
    assert (result.code, result.out) == (2, "")
    assert "the model itself is checked by detcheck run MODEL -k stock,batch-inv" in result.err
    assert result.err.count("\n") == 1


OWN_CODE = """
from transformers import LlamaForCausalLM, LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **rest
    ):
        out = super().forward(input_ids, attention_mask, position_ids, past_key_values, **rest)
        if NEIGHBOURS:
            out.logits = out.logits + out.logits.mean(0, keepdim=True)
        return out
"""


@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_folder_with_code_of_its_own(detcheck, tmp_path, monkeypatch, neighbours):
    """It runs only if that is allowed, and its planted fault is found."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder = tmp_path / f"own{neighbours}"
    maps = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    given = T.LlamaConfig().to_dict() | {"model_type": "own", "auto_map": maps}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(given))
    (folder / "own.py").write_text(OWN_CODE.replace("NEIGHBOURS", str(neighbours)))
    refused = detcheck("coverage", str(folder))
    assert "runs code of its own: read it, then allow it by --trust-remote-code" in refused.err
    found = json.loads(detcheck("coverage", str(folder), "--json", "--trust-remote-code").out)
    assert found["architecture"] == "own"
    if neighbours:
        assert "computes with the other rows of its batch" in found["reason"]
    else:
        assert (found["level"], found["reason"]) == ("fully-invariant", None)
        assert found["measure"].endswith(f"{folder} -k stock,fully-invariant --trust-remote-code")


@pytest.mark.sweep
def test_an_architecture_that_computes_with_its_padding(detcheck):
    result = detcheck("coverage", "bart")
    shown = " ".join(result.out.split())
    assert ", for requests of one length; padding is refused" in shown
    assert "--engine static" in shown
    found = json.loads(detcheck("coverage", "bart", "--json").out)
    assert (found["one_length"], found["reason"]) == (True, None)
    assert not json.loads(detcheck("coverage", "llama", "--json").out)["one_length"]


def test_a_refused_architecture_names_op_and_module(detcheck, monkeypatch):
    monkeypatch.setattr("detcheck.kernels.op_rules.EVEN", EVEN - {"cos"})
    result = detcheck("coverage", "llama")
    assert result.code == 0
    assert "Level: stock only" in result.out
    assert "llama runs aten::cos (in model.rotary_emb)" in " ".join(result.out.split())
    assert "use --kernels stock" in " ".join(result.out.split())


def test_a_folder_needs_no_weights(detcheck, tmp_path):
    config = T.LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4})
    config.save_pretrained(tmp_path)
    found = json.loads(detcheck("coverage", str(tmp_path), "--json").out)
    assert found["level"] is None
    assert "quantised weights (gptq)" in found["reason"]
    config = T.LlamaConfig()
    config.save_pretrained(tmp_path)
    found = json.loads(detcheck("coverage", str(tmp_path), "--json").out)
    assert (found["architecture"], found["level"]) == ("llama", "fully-invariant")


@pytest.mark.parametrize(
    ("scheme", "held"), [("Int8WeightOnlyConfig", True), ("Int4WeightOnlyConfig", False)]
)
def test_weight_only_schemes_are_held_and_others_refused_by_name(detcheck, tmp_path, scheme, held):
    quantised = {"quant_method": "torchao", "quant_type": {"default": {"_type": scheme}}}
    T.LlamaConfig(quantization_config=quantised).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = json.loads(detcheck("coverage", str(tmp_path), "--json").out)
    assert found["level"] == ("fully-invariant" if held else None)
    assert (found["reason"] is None) is held
    assert held or f"quantised weights (torchao {scheme}), whose products" in found["reason"]


@pytest.mark.parametrize(
    ("method", "held"), [("compressed-tensors", True), ("bitsandbytes", False), ("awq", False)]
)
def test_other_schemes_are_held_or_refused_by_name(detcheck, tmp_path, method, held):
    T.LlamaConfig(quantization_config={"quant_method": method}).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = json.loads(detcheck("coverage", str(tmp_path), "--json").out)
    assert found["level"] == ("fully-invariant" if held else None)
    assert held or f"quantised weights ({method}), whose products" in found["reason"]


@pytest.mark.parametrize(
    ("weights", "activations", "held", "name"),
    [
        ("int8", None, True, "quanto int8"),
        ("float8", None, True, "quanto float8"),
        ("int4", None, False, "quanto int4"),
        ("int8", "int8", False, "quanto int8 and int8"),
    ],
)
def test_weights_of_quanto_are_held_without_quantised_activations(weights, activations, held, name):
    given = {"quant_method": "quanto", "weights": weights, "activations": activations}
    assert quantisation(T.LlamaConfig(quantization_config=given)) == name
    assert (name in WEIGHT_ONLY) is held


@pytest.mark.parametrize(("window", "held"), [(1, False), (2, True), (4096, True)])
def test_a_window_of_one_is_refused_as_a_run_refuses_it(detcheck, tmp_path, window, held):
    T.MistralConfig(sliding_window=window).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = json.loads(detcheck("coverage", str(tmp_path), "--json").out)
    assert found["level"] == ("fully-invariant" if held else None)
    assert held or "A sliding window of 1 is not covered" in found["reason"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "has a config.json that is no JSON object: download the model again."),
        ('{"model_type": "t5"}', "is no causal language model: name one that"),
        ('{"model_type": "vit"}', "is no causal language model: name one that"),
        (
            '{"model_type": "llama", "quantization_config": {"bits": 4}}',
            "The config's quantization_config names no quant_method: correct its config.json.",
        ),
    ],
)
def test_a_config_that_gives_no_model_is_one_sentence(detcheck, tmp_path, config, sentence):
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    result = detcheck("coverage", str(tmp_path))
    assert result.code == 2
    assert sentence in " ".join(result.err.split())


def test_garbage_is_collected_again_afterwards(detcheck):
    assert gc.isenabled()
    assert detcheck("coverage", "llama", "--json").code == 0
    assert gc.isenabled()


@pytest.mark.parametrize("name", ["", "./nowhere", "no-such-architecture"])
def test_a_model_that_is_not_there_is_one_sentence(detcheck, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = detcheck("coverage", name)
    assert result.code in {2, 3}
    assert result.err.count("\n") == 1
    assert "bug" not in result.err
