"""A tokenizer, prompts, and rollouts that a real engine samples from a tiny model."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.in_process import InProcessEngine
from detcheck.engines.static import StaticEngine
from detcheck.experiment import Experiment
from detcheck.mismatch.rollouts import Rollout
from detcheck.mismatch.sampling import sample
from detcheck.models import LoadedModel

ENGINES: dict[str, type[InProcessEngine]] = {
    "continuous": ContinuousEngine,
    "static": StaticEngine,
}
TEMPLATE = (
    "{% for m in messages %}<user>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
PROMPTS = ("Tell me about rivers", "Why?", "A much longer question about nothing in particular")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: 2 + at for at, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", bos_token="<s>", pad_token="</s>"
    )
    fast.chat_template = TEMPLATE
    return fast


def sampled(
    loaded: LoadedModel,
    kernels: tuple[str, ...] = ("stock", "fully-invariant"),
    engine: str = "continuous",
    **fields: object,
) -> dict[str, tuple[Rollout, ...]]:
    """Rollouts under each kernels setting, from a real engine in batches of four."""
    asked = {"completions": 8, "batch_sizes": (4,), "max_new_tokens": 12, "temperature": 1.0}
    experiment = Experiment(prompts=PROMPTS, kernels=kernels, **asked | fields)
    made = ENGINES[engine](loaded, experiment)
    try:
        return {name: sample(made, experiment, name, 0, made.encode) for name in kernels}
    finally:
        made.close()
