"""Loading: folders, the hub and devices; one sentence for a model that cannot be loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from detcheck import models
from detcheck.errors import ModelError, UsageError
from detcheck.models import loading, naming


def refused(name: str | Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        models.load(str(name), **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


# Folders


def test_a_folder_is_loaded_in_its_own_dtype(saved: Path) -> None:
    loaded = models.load(str(saved), device="cpu")
    assert (loaded.name, loaded.dtype) == (str(saved), torch.float16)
    assert (loaded.context_length, loaded.eos_token_ids) == (64, (1,))
    assert not loaded.model.training
    assert loaded.tokenizer("why")["input_ids"] == [2]


def test_the_dtype_asked_for_is_the_one_that_comes(saved: Path) -> None:
    assert models.load(str(saved), dtype="float32", device="cpu").dtype == torch.float32


def test_a_model_without_sdpa_is_loaded_with_its_own_attention(
    copied: Callable[..., Path],
) -> None:
    folder = copied("model.safetensors", "config.json")
    config = Gemma2Config(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, eos_token_id=1, bos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder)
    loaded = models.load(str(folder), device="cpu")
    assert loaded.model.config._attn_implementation == "eager"


def test_a_folder_may_be_named_from_home(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    assert models.load("~/tiny", device="cpu").name == "~/tiny"


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert "holds no config.json: it is not a model's folder." in refused(tmp_path)


@pytest.mark.parametrize("left_out", [(), ("config.json", "model.safetensors")])
def test_an_adapter_is_refused_since_its_base_model_is_elsewhere(
    copied: Callable[..., Path], left_out: tuple[str, ...]
) -> None:
    folder = copied(*left_out)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    save_file({"lora": torch.ones(1)}, folder / "adapter_model.safetensors")
    sentence = (
        f"{folder} holds an adapter (adapter_config.json), and detcheck identifies whole models "
        "only: merge it into its base model (PEFT's merge_and_unload) and name the folder of the "
        "result."
    )
    assert refused(folder) == sentence
    with pytest.raises(ModelError, match="holds an adapter"):  # as the vLLM engine asks for it
        models.source(str(folder))


def test_a_model_that_an_adapter_was_loaded_into_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PEFT installed, transformers loads an adapter of the hub without a word."""
    stock = loading._from_pretrained

    def with_adapter(*args: Any) -> Any:
        model, info = stock(*args)
        model._hf_peft_config_loaded = True
        return model, info

    monkeypatch.setattr(loading, "_from_pretrained", with_adapter)
    assert "holds an adapter" in refused(saved, device="cpu")


def test_a_folder_without_weights(copied: Callable[..., Path]) -> None:
    folder = copied("model.safetensors")
    assert refused(folder) == (
        f"{folder} holds no weights (*.safetensors): download the whole model."
    )


def test_a_folder_without_a_tokenizer(copied: Callable[..., Path]) -> None:
    sentence = refused(copied("tokenizer.json", "tokenizer_config.json"))
    assert "holds no tokenizer that can be read: download the whole model." in sentence


def test_damaged_weights(copied: Callable[..., Path]) -> None:
    folder = copied()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "cannot be loaded as a causal language model" in refused(folder)


def change_weights(folder: Path, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Replace weights, or leave them out where None; returns what is there then."""
    weights = load_file(folder / "model.safetensors") | changes
    weights = {name: weight.clone() for name, weight in weights.items() if weight is not None}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


@pytest.mark.parametrize("weight", [None, torch.ones(3)])
def test_missing_weights_are_not_filled_at_random(
    copied: Callable[..., Path], weight: torch.Tensor | None, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied()
    change_weights(
        folder, **{"model.norm.weight": weight, "model.layers.0.mlp.up_proj.weight": weight}
    )
    assert refused(folder) == (
        f"{folder} comes without 2 of its weights, or with other shapes (such as "
        "model.layers.0.mlp.up_proj.weight): download the whole model, or name one that is made "
        "to generate text."
    )
    assert capfd.readouterr() == ("", "")


def test_tied_weights_are_not_missing(copied: Callable[..., Path]) -> None:
    folder = copied()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8"
    )
    weights = change_weights(folder, **{"lm_head.weight": None})
    model = models.load(str(folder), device="cpu").model
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("text", ["{", "", "null", "[1]"])
def test_a_damaged_config(copied: Callable[..., Path], text: str) -> None:
    folder = copied()
    (folder / "config.json").write_text(text, encoding="utf-8")
    wanted = f"{folder} has a config.json that is no JSON object: download the model again."
    assert refused(folder) == wanted


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("99.1.0", "was saved by transformers 99.1.0, which is newer than the one here, and"),
        ("4.0.0", "cannot be loaded as a causal language model (Class validation"),
        ("odd", "cannot be loaded as a causal language model (Class validation"),
        (None, "cannot be loaded as a causal language model (Class validation"),
    ],
)
def test_a_known_architecture_with_the_layers_of_a_newer_transformers(
    copied: Callable[..., Path], version: str | None, words: str
) -> None:
    folder = copied()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers = ["attention_of_the_future"] * config["num_hidden_layers"]
    config |= {"transformers_version": version, "layer_types": layers}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sentence = refused(folder)
    assert words in sentence
    assert ("run `pip install --upgrade transformers`." in sentence) is (version == "99.1.0")


@pytest.mark.sweep
def test_a_model_that_generates_nothing(copied: Callable[..., Path]) -> None:
    folder = copied()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "vit", "architectures": ["ViTModel"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert f"{folder} is no causal language model: name one that " in refused(folder)


def test_an_architecture_of_a_newer_transformers(
    copied: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "llama9", "architectures": ["Llama9ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert refused(folder) == (
        f"{folder} has an architecture that this transformers does not know: run `pip install "
        "--upgrade transformers`."
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere", "/nowhere/model", "a/b/c"])
def test_a_folder_that_is_not_there(name: str) -> None:
    assert refused(name) == f"There is no folder {name}: check the path of the model."


def test_a_file_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").write_bytes(b"GGUF")
    assert "There is no folder model.gguf" in refused("model.gguf")


def test_an_empty_name() -> None:
    assert "MODEL is empty" in refused(" ")


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Returns a function: what the hub's client raises -> the options it was called with."""

    def hub(error: Exception | None, *, answers: bool = True) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def tokenizer(source: str, options: dict[str, Any]) -> Any:
            seen.update(options)
            raise error or OSError("nothing")

        monkeypatch.setattr(naming, "_hub_answers", lambda: answers)
        monkeypatch.setattr(loading, "_tokenizer", tokenizer)
        return seen

    return hub


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError("a/b is not a local folder and is not a valid model identifier listed on …"),
            "a/b is neither a folder nor on the hub: check its name.",
        ),
        (OSError("404 Client Error"), "a/b is neither a folder nor on the hub"),
        (
            ValueError("a/b contains custom code … pass trust_remote_code=True"),
            "a/b runs code of its own: read it, then allow it by `trust_remote_code`.",
        ),
        (OSError("You are trying to access a gated repo."), "a/b is gated on the hub"),
        (OSError("We couldn't connect to …"), "the hub cannot be reached"),
        (KeyError("strange\nthing"), "cannot be loaded as a causal language model ("),
        (MemoryError(), "a/b does not fit into memory."),
        (torch.OutOfMemoryError("CUDA out of memory."), "a/b does not fit into memory."),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(hub, error: Exception, words: str) -> None:
    seen = hub(error)
    assert words in refused("a/b")
    assert "local_files_only" not in seen


def test_a_revision_reaches_every_file(hub) -> None:
    seen = hub(None)
    refused("a/b", revision="v1.2")
    assert seen["revision"] == "v1.2"


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError("v9 is not a valid git identifier (branch name, …)"), "has no such revision")],
)
def test_a_revision_that_the_hub_has_not(hub, error: Exception, words: str) -> None:
    hub(error)
    assert words in refused("a/b", revision="v9")


def test_a_revision_is_of_the_hub_only(saved: Path) -> None:
    assert refused(saved, revision="main") == (
        f"`revision` is for models on the hub, and this is a folder, {saved}: leave `revision` out."
    )


def test_without_the_hub_only_this_machine_is_searched(hub) -> None:
    seen = hub(None, answers=False)
    refused("a/b")
    assert seen["local_files_only"] is True


def test_a_folder_asks_no_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(naming, "_hub_answers", lambda: asked.append("hub"))
    models.load(str(saved), device="cpu")
    assert asked == []


def test_a_hub_id_asks_the_hub(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(None)
    asked: list[str] = []
    monkeypatch.setattr(naming, "_hub_answers", lambda: asked.append("hub"))
    refused("a/b")
    assert asked == ["hub"]


def test_a_name_without_a_network_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers by itself takes most of a minute to find out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    assert not naming._hub_answers()
    assert time.perf_counter() - start < 5


# Devices


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="PyTorch sees no CUDA GPU here"):
        models.load("a/b", device="cuda")
    assert models.resolve_device("auto") == torch.device("cpu")


def test_a_gpu_is_taken_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert models.resolve_device("auto").type == "cuda"
    assert models.resolve_device("cpu").type == "cpu"
