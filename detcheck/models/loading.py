"""Load a causal language model by hub id, folder, or the embedded default."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from detcheck.errors import ModelError, UsageError
from detcheck.models.embedded import EMBEDDED_DTYPE, EMBEDDED_NAME
from detcheck.models.naming import (
    adapter_sentence,
    hub_commit,
    pretrained_options,
    source,
    why_not_loaded,
)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode on its device, with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    device: torch.device
    source: str | None = None
    """Folder or hub id that it was loaded from; None if it was made in memory."""
    commit: str | None = None
    """Commit of a model from the hub; None for other models."""

    @property
    def context_length(self) -> int | None:
        """Most tokens that a sequence may have; None if the config does not say."""
        config = self.model.config.get_text_config()
        value = getattr(config, "max_position_embeddings", None)
        return int(value) if value and value > 0 else None

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
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load `name` (hub id or folder; None: the embedded model).

    With `sdpa` attention, or `eager` if transformers has no other for the architecture.
    `revision` is a branch, tag or commit on the hub. `dtype` and `device` are as in
    `detcheck.InProcess`. Raises ModelError if there is no such model or it cannot be loaded,
    UsageError if the device is not there.
    """
    target = resolve_device(device)
    shown = name or EMBEDDED_NAME
    try:
        found = source(name, dtype, revision)
        options = pretrained_options(found, revision=revision, trust_remote_code=trust_remote_code)
        with _quiet():
            tokenizer = _tokenizer(found, options)
        model, missing = _causal_lm(found, _torch_dtype(dtype, embedded=name is None), options)
        if getattr(model, "_hf_peft_config_loaded", False):  # of the hub, if PEFT is installed
            raise ModelError(adapter_sentence(shown))
        _refuse_missing(shown, missing)
        model = model.to(target).eval()
    except ModelError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(f"{shown} does not fit into memory.") from error
    except Exception as error:  # whatever transformers raises for the contents of the files
        raise ModelError(why_not_loaded(shown, error)) from error
    commit = hub_commit(found, revision)
    return LoadedModel(shown, model, tokenizer, model.dtype, target, found, commit)


def resolve_device(device: str) -> torch.device:
    """The torch device for `auto`, `cpu` or `cuda`. Raises UsageError if it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError('`device="cuda"`: PyTorch sees no CUDA GPU here; use `device="cpu"`.')
    return torch.device(device)


def _torch_dtype(dtype: str, *, embedded: bool) -> torch.dtype | str:
    if dtype == "auto":
        return getattr(torch, EMBEDDED_DTYPE) if embedded else "auto"
    return getattr(torch, dtype)


def _tokenizer(source: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, padding_side="left", **options)


def _causal_lm(
    source: str, dtype: torch.dtype | str, options: dict[str, Any]
) -> tuple[Any, set[str]]:
    """The model, and the names of the weights that its checkpoint did not fill.

    Tied weights are filled by the weights that they are tied to.
    """
    with _quiet():
        try:
            loaded = _from_pretrained(source, dtype, "sdpa", options)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            # Models with sinks or soft caps have none in transformers.
            loaded = _from_pretrained(source, dtype, "eager", options)
    model, info = loaded
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _from_pretrained(
    source: str, dtype: torch.dtype | str, attention: str, options: dict[str, Any]
) -> Any:
    """transformers' model and loading info."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation=attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )


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
    """transformers fills missing weights at random, with others each time it loads the model."""
    if missing:
        raise ModelError(
            f"{name} comes without {len(missing)} of its weights, or with other shapes (such as "
            f"{min(missing)}): download the whole model, or name one that is made to generate text."
        )
