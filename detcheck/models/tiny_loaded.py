"""A tiny random model with a tokenizer whose words are token ids, as engines take it."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from detcheck.models.loading import LoadedModel

TINY_VOCABULARY = 96


def with_tokenizer(model: Any, name: str) -> LoadedModel:
    """`model` with a tokenizer for words such as `4 90 17`. No token ends an answer."""
    words = Tokenizer(WordLevel({str(one): one for one in range(TINY_VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = WhitespaceSplit()
    model.generation_config.eos_token_id = None
    make: Any = PreTrainedTokenizerFast  # transformers gives it no types
    tokenizer = make(tokenizer_object=words, pad_token="0")
    return LoadedModel(name, model, tokenizer, model.dtype, model.device)
