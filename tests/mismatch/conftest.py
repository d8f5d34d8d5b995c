"""Tiny random models, so that every link is computed in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from detcheck.models import LoadedModel
from detcheck.models.tiny import config_of, shrunk, tiny_model
from mismatch.tiny import tokenizer


@pytest.fixture(scope="session")
def loaded() -> Callable[..., LoadedModel]:
    """Returns a function: architecture, dtype -> a tiny model of it, with the tokenizer."""

    def loaded(kind: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
        config = shrunk(config_of(kind))
        config.vocab_size, config.max_position_embeddings = 320, 512
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 1
        model = tiny_model(config, dtype)
        return LoadedModel(f"tiny {kind}", model, tokenizer(), dtype, torch.device("cpu"))

    return loaded


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, for the command line."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
