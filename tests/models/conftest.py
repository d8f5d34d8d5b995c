"""A tiny Llama on disk, whole or without some of its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


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
