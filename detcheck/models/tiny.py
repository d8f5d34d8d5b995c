"""Tiny random models of any causal architecture in transformers, with all its kinds of layers.

A config is shrunk by rules: attributes are known by their names. What an architecture needs beyond
them is data, in `EXCEPTIONS`. The layers are the real ones, so the ops that run are, too.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from detcheck.errors import ModelError, UsageError
from detcheck.models.naming import pretrained_options, source, why_not_loaded

WINDOW = 6
"""Keys that a query of a windowed layer sees: fewer than the tests' requests have tokens."""
NUM_LAYERS = 2
MAX_PARAMETERS = 30_000_000
RULES: dict[int, tuple[str, ...]] = {
    96: ("vocab_size", "intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size",
         "intermediate_size_mlp", "ffn_intermediate_size", "shared_expert_intermediate_size",
         "encoder_ffn_dim", "decoder_ffn_dim", "shared_intermediate_size",
         "vocab_size_per_layer_input", "feed_forward_hidden_size"),
    64: ("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size",
         "emb_dim", "attention_hidden_size", "lru_width", "embedding_dim"),
    48: ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size"),
    NUM_LAYERS: ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
                 "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "experts_per_token",
                 "moe_top_k", "num_experts_per_token", "num_blocks", "index_topk_blocks"),
    4: ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
        "encoder_attention_heads", "linear_num_value_heads", "linear_num_key_heads",
        "linear_num_heads", "chunk_size", "mamba_chunk_size", "block_size", "index_block_size"),
    16: ("head_dim", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "linear_key_head_dim",
         "linear_value_head_dim", "linear_head_dim", "global_head_dim",
         "mamba_d_head", "mamba_d_state", "ssm_state_size", "state_size",
         "hidden_size_per_layer_input"),
    8: ("qk_rope_head_dim", "rotary_dim", "rope_head_dim", "time_step_rank", "mamba_n_heads",
        "mamba_num_heads", "n_mamba_heads"),
    12: ("v_head_dim",),
    192: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length",
          "max_sequence_length"),
    WINDOW: ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size",
             "sliding_window_size", "local_attention", "index_topk", "keep_window_size",
             "rel_extent"),
    1: ("topk_group", "n_group", "num_expert_group", "first_k_dense_replace", "bos_token_id",
        "n_shared_experts", "mamba_n_groups"),
    3: ("eos_token_id", "sep_token_id"),
    0: ("pad_token_id", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop",
        "attn_pdrop", "num_nextn_predict_layers", "unk_token_id"),
}  # fmt: skip
"""Value of a tiny config, and the attributes that get it if the architecture's default has them."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "experts_per_token",
          "moe_top_k", "num_experts_per_token")  # fmt: skip
"""Attributes for the number of experts, and for those of each token."""
_JAMBA = {
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
    "expert_layer_offset": 1, "num_hidden_layers": 2,
}  # fmt: skip
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {  # its default config lacks the base of the rotary embedding
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4},
    "dots1": {
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},  # two cycles of 1 + 3
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": _JAMBA,
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlnet": {"d_head": 16},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"mamba_headdim": 16, "layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Architecture, and what its tiny config needs beyond the rules."""
_VALUES = {name: value for value, names in RULES.items() for name in names}
_MAX_KINDS = 4


def architectures() -> tuple[str, ...]:
    """Every architecture that transformers lists as a causal language model, such as `llama`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def architecture_of(name: str | None) -> str | None:
    """The architecture that `name` means: `llama` for `llama` or `LlamaForCausalLM`; else None."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = {kind: each for each, kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    return name if name in architectures() else classes.get(name or "")


def config_of(name: str | None, *, trust_remote_code: bool = False) -> Any:
    """The config of an architecture, a folder or a hub id; None is the embedded model.

    No weights are needed. A model of text and images gives the config of its text model. Raises
    ModelError if there is no such model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        known = architecture_of(name)
        if known is not None:
            config: Any = AutoConfig.for_model(known)
        else:
            found = source(name, needs_weights=False)
            options = pretrained_options(found, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(found, **options)
        text = config.get_text_config(decoder=True)
        if known is None and type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING and not _has_code(text):
            raise ValueError("Unrecognized configuration class")  # as `from_pretrained` would say
        if hasattr(config, "quantization_config") and text is not config:
            text.quantization_config = config.quantization_config
        return text
    except ModelError:
        raise
    except Exception as error:  # whatever transformers raises for the contents of the files
        raise ModelError(why_not_loaded(name or "The embedded model", error)) from error


def _has_code(config: Any) -> bool:
    """True if a model brings along a causal language model's own code."""
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


WEIGHT_ONLY = (
    *("Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "IntxWeightOnlyConfig"),
    *("compressed-tensors", "quanto int8", "quanto float8"),
)
"""Schemes (those with capitals are torchao's) that compute with weights in floating point, in a
product that the batch-invariant kernels cover. transformers decompresses the weights of
compressed-tensors when they are first used, and leaves out the quantisation of activations. quanto
turns its weights into floating-point numbers for each product; those of 4 and 2 bits do not run in
`torch.inference_mode()`."""


def quantisation(config: Any) -> str | None:
    """How the weights of a model are quantised, such as `gptq` or `torchao Int8WeightOnlyConfig`.

    `quanto int8 and int8` has activations of int8 as well. None if nothing is quantised. Raises
    UsageError if the config does not say how.
    """
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    options = given.to_dict() if hasattr(given, "to_dict") else given
    if not isinstance(options, dict) or "quant_method" not in options:
        raise UsageError(
            "The config's quantization_config names no quant_method: correct its config.json."
        )
    method = str(getattr(options["quant_method"], "value", options["quant_method"]))
    scheme = options.get("quant_type")
    default = scheme.get("default") if isinstance(scheme, dict) else None
    if method == "quanto":
        activations = options.get("activations")
        return f"quanto {options.get('weights')}" + (f" and {activations}" if activations else "")
    return f"{method} {default['_type']}" if isinstance(default, dict) else method


def shrunk(config: Any) -> Any:
    """A config of the same kind, with few layers of few heads; every kind of layer is kept."""
    values = config.to_dict()
    _check_experts(values)
    tiny = {
        name: _shrunk_value(name, value)
        for name, value in values.items()
        if name in _VALUES and value is not None and not isinstance(value, dict | str)
    }
    kv_heads = values.get("num_key_value_heads")
    if isinstance(kv_heads, int):
        heads = values.get("num_attention_heads") or kv_heads
        tiny["num_key_value_heads"] = 1 if kv_heads == 1 else 4 if kv_heads == heads else 2
    if "qk_rope_head_dim" in values and "head_dim" in tiny:
        tiny["head_dim"] = tiny["qk_rope_head_dim"]  # latent attention: of the rotary part
    if "is_decoder" in values:
        tiny["is_decoder"] = True
    kept = {
        name: value
        for name, value in values.items()
        if name not in _DERIVED and not name.startswith("_")
    }
    tiny |= _fewer_layers(values)
    tiny = {**kept, **tiny, **EXCEPTIONS.get(config.model_type, {})}
    with quiet():
        try:
            small = type(config)(**tiny)
            small._name_or_path = config._name_or_path  # where code of its own lies
            return small
        except Exception as error:  # a config checks its own sizes, each in its own way
            reason = " ".join(str(error).split())[:150]
            raise ModelError(f"A tiny {config.model_type} cannot be built ({reason}).") from error


def _check_experts(values: dict[str, Any]) -> None:
    """Raise UsageError if a token would have more experts than there are: a tiny one has enough."""
    experts, chosen = (
        max((values[name] for name in names if isinstance(values.get(name), int)), default=0)
        for names in (EXPERTS, CHOSEN)
    )
    if 1 < experts < chosen:
        raise UsageError(
            f"The config gives each token {chosen} experts, and the model has {experts}: correct "
            "its config.json."
        )


def _fewer_layers(values: dict[str, Any]) -> dict[str, Any]:
    """Values of a config that are given layer by layer, for one layer of each kind."""
    num_layers = values.get("num_hidden_layers")
    lists = {
        name: value
        for name, value in values.items()
        if isinstance(value, list) and isinstance(num_layers, int) and len(value) == num_layers
    }
    kinds = [*zip(*lists.values(), strict=True)] if lists else []
    kept = [at for at, kind in enumerate(kinds) if kinds.index(kind) == at][:_MAX_KINDS]
    if len(kept) < NUM_LAYERS:
        kept = [*range(NUM_LAYERS)]
    fewer: dict[str, Any] = {
        name: [value[at] for at in kept if at < len(value)] for name, value in lists.items()
    }
    by_layer = values.get("per_layer_config")
    if isinstance(by_layer, dict):
        known = {int(layer): value for layer, value in by_layer.items()}
        fewer["per_layer_config"] = {
            new: known[old] for new, old in enumerate(kept) if old in known
        }
    return fewer | ({"num_hidden_layers": len(kept)} if "num_hidden_layers" in values else {})


_DERIVED = {"model_type", "architectures", "transformers_version", "quantization_config", "dtype"}


def _shrunk_value(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_VALUES[name]] if name.endswith("token_id") else value
    if name in RULES[WINDOW] and value < WINDOW:
        return value  # a window of 1 is no smaller kind of a window
    return float(_VALUES[name]) if isinstance(value, float) else _VALUES[name]


def tiny_model(
    config: Any,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    trust_remote_code: bool = False,
) -> Any:
    """A causal model of a shrunk config with random weights, in evaluation mode.

    `sdpa` attention if the architecture has it, else its own. Raises ModelError with the reason if
    it cannot be built.
    """
    build = partial(_build, config, trust_remote_code=trust_remote_code)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in build().parameters())
        if size > MAX_PARAMETERS:
            raise ModelError(
                f"A tiny {config.model_type} cannot be built (the rules leave {size / 1e6:.0f} "
                "million parameters)."
            )
        model = build()
        # Some parts start at zero or one, and would hide what flows through them.
        with torch.no_grad():
            for weight in model.parameters():
                if weight.is_floating_point():
                    weight.add_(torch.randn_like(weight), alpha=0.05)
    return _in_dtype(model, dtype).eval()


def _in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """`model` with its weights in `dtype`, but those that transformers always keeps in float32."""
    kept = {
        name: tensor.clone()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if any(part in name for part in model._keep_in_fp32_modules_strict or ())
    }
    model.to(dtype)
    for name, tensor in kept.items():
        place, _, attribute = name.rpartition(".")
        getattr(model.get_submodule(place), attribute).data = tensor.data
    return model


def _build(config: Any, *, trust_remote_code: bool) -> Any:
    """A model from a config, with `sdpa` attention if the architecture has it."""
    from transformers import AutoModelForCausalLM

    for attention in ("sdpa", "eager"):
        try:
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=attention, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # whatever a config of a size never seen leads to
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:150]
    raise ModelError(f"A tiny {config.model_type} cannot be built ({reason}).")


_CRITICAL = 50


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings about configs of unusual sizes."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(_CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
