"""Decoding options that a model brings along in its `generation_config`, and which are left out.

Temperature 0 means the best token at every step, whatever the model's own options say; above it,
only the experiment's options shape the distribution. The same rule holds in every engine here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

SAMPLING = {
    *("top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
}
"""Options that shape sampling only: they would change nothing at temperature 0."""
_REPLACED = {"do_sample", "temperature", "max_length", "max_new_tokens", "num_return_sequences"}
"""Options that an experiment states itself."""
_NO_DECODING = {
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
    *("compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "is_assistant", "transformers_version", "_from_model_config"),
    *("trust_remote_code", "use_mtp", "generation_mode"),
}
"""Entries of a generation config that choose no token."""


def left_out(
    generation_config: Any, *, sampled: bool, stated: Collection[str] = ()
) -> dict[str, str]:
    """The model's own decoding options that detcheck does not apply, by name.

    Each value is such as `1.3, left out`. `sampled` is true above temperature 0: only then do
    options that shape sampling count, except those that are `stated` by the experiment.
    `generation_config` is transformers' GenerationConfig.
    """
    neutral = {**generation_config._get_default_generation_params(), "top_k": 0}
    ignored = _REPLACED | _NO_DECODING | (set(stated) if sampled else SAMPLING)
    return {
        name: f"{str(value)[:60]}, left out"
        for name, value in sorted(generation_config.to_diff_dict().items())
        if name not in ignored and value is not None and value != neutral.get(name)
    }


@contextmanager
def own_decoding_set_aside(model: Any) -> Iterator[None]:
    """Give the model an empty generation config inside this context.

    `generate` fills every option that its caller leaves unset from the model's own config.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
