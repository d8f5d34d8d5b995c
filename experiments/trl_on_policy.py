"""TRL's GRPO trainer with its sampler inside the invariant mode: TRL's own metrics of the mismatch.

    pip install trl
    python experiments/trl_on_policy.py           # minutes on two cores; no downloads

The task, the model and the warm-up are those of `on_policy_rl.py`. TRL measures sampler against
trainer only for samplers that return log-probabilities, which are those behind its vLLM interface.
So the samplers here stand behind that interface and generate in this process: `generate` is
transformers' decoding with a cache, `continuous` its continuous batching. TRL then reports the
difference of the log-probabilities and its importance ratios, which weigh the loss.

TRL's trainer pads prompts on the left and hands the model no positions, so padding counts as
positions there and not in the sampler: a gap that no kernel can close. Two arms show it; in the
others the trainer counts as the sampler does (`add_positions`).

Arms: stock and `fully-invariant` kernels around `trainer.train()`, in bfloat16; the same with
weights in float32 and autocast to bfloat16; and the same with continuous batching. With `generate`
in the mode TRL's difference must be exactly 0 at every step, and every importance ratio exactly 1;
the script stops if they are not. Each arm runs twice, to see whether it repeats.

Writes `results.json` and `table.md` to `results/trl_on_policy/`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_loop import kernels, warmed_up
from rl_tasks import BOS, EOS, LENGTHS, PAD, SEP, reward, tiny

from detcheck import environment

RESULTS = Path(__file__).resolve().parents[1] / "results" / "trl_on_policy"
WORDS = {**{str(digit): digit for digit in range(10)}, "<s>": BOS, "=": SEP, "</s>": EOS, "_": PAD}
GROUP = 8
"""Samples of a prompt."""
DIFFERENCE, RATIO = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"
KEPT = ("loss", "reward", "grad_norm", f"{DIFFERENCE}/mean", f"{DIFFERENCE}/max",
        f"{RATIO}/min", f"{RATIO}/mean", f"{RATIO}/max", "clip_ratio/region_mean")  # fmt: skip
"""TRL's metrics of a step that are kept."""
TILE = 32768
"""TRL's trainer folds the vocabulary in tiles of this size."""


@dataclass(frozen=True)
class Arm:
    """How one arm computes."""

    name: str
    invariant: bool
    sampler: str = "generate"
    autocast: bool = False
    own_positions: bool = True
    """If true, the trainer's positions leave padding out, as the sampler's do."""


ARMS = (
    Arm("stock, TRL's positions", invariant=False, own_positions=False),
    Arm("fully-invariant, TRL's positions", invariant=True, own_positions=False),
    Arm("stock", invariant=False),
    Arm("fully-invariant", invariant=True),
    Arm("stock, autocast", invariant=False, autocast=True),
    Arm("fully-invariant, autocast", invariant=True, autocast=True),
    Arm("stock, continuous", invariant=False, sampler="continuous"),
    Arm("fully-invariant, continuous", invariant=True, sampler="continuous"),
)


def main() -> None:
    """Run every arm twice, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    start = warmed_up(0, args.warm_up)
    measured = []
    for arm in ARMS:
        history = train(arm, start, args.steps)
        again = train(arm, start, args.steps)
        measured.append(
            {
                "arm": arm.name,
                "repeats": history == again,
                "steps": history,
            }
        )
        print(row_of(measured[-1]), flush=True)
    write(args.out, measured, vars(args) | {"out": args.out.name})


def train(arm: Arm, start: Any, steps: int) -> list[dict[str, float]]:
    """TRL's metrics at every step. Raises RuntimeError if the exact arm has a gap."""
    from trl import GRPOTrainer

    torch.manual_seed(0)
    model = copy.deepcopy(start)
    model = model if arm.autocast else model.bfloat16()
    with tempfile.TemporaryDirectory() as folder, kernels(invariant=arm.invariant):
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=config(arm, steps, folder),
            train_dataset=dataset(steps),
            processing_class=tokenizer(),
        )
        if arm.own_positions:
            model.base_model.register_forward_pre_hook(add_positions, with_kwargs=True)
        trainer.use_vllm, trainer._last_loaded_step = True, -1
        trainer.vllm_generation = SAMPLERS[arm.sampler](trainer)
        trainer.train()
    logged = [line for line in trainer.state.log_history if f"{DIFFERENCE}/max" in line]
    history = [{name: float(line[name]) for name in KEPT} for line in logged]
    if arm.invariant and arm.own_positions and arm.sampler == "generate":
        check_exact(history)
    return history


def add_positions(_: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Count positions without padding, if none are given: TRL's trainer gives only the mask.

    It pads prompts on the left. Without this a padded prompt begins at the position of its first
    token in the row, and in `generate` at 0: rotary angles round differently.
    """
    mask = inputs.get("attention_mask")
    if inputs.get("position_ids") is None and mask is not None and mask.dim() == 2:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        inputs = inputs | {"position_ids": positions}
    return args, inputs


def check_exact(history: Sequence[dict[str, float]]) -> None:
    """Raise RuntimeError unless sampler and trainer agreed to the bit at every step."""
    gaps = {line[f"{DIFFERENCE}/max"] for line in history}
    ratios = {line[f"{RATIO}/{name}"] for line in history for name in ("min", "mean", "max")}
    if gaps != {0.0} or ratios != {1.0}:
        raise RuntimeError(f"The exact arm has a gap: differences {gaps}, ratios {ratios}.")


def config(arm: Arm, steps: int, folder: str) -> Any:
    """TRL's settings: one update a batch, no reference model, truncated importance sampling."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=arm.autocast, seed=0, max_steps=steps,
        learning_rate=2e-4, lr_scheduler_type="constant", optim="adamw_torch",
        per_device_train_batch_size=8 * GROUP, num_generations=GROUP,
        max_completion_length=max(LENGTHS) + 2, temperature=1.0, beta=0.0,
        gradient_checkpointing=False, vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=2.0, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip


def tokenizer() -> Any:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast
    words = Tokenizer(models.WordLevel(WORDS, unk_token="_"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="_",
        padding_side="left",
    )  # fmt: skip


def dataset(steps: int) -> Any:
    """Prompts as text, and the wanted digits."""
    from datasets import Dataset

    names = {token: word for word, token in WORDS.items()}
    generator = torch.Generator().manual_seed(1000)
    return Dataset.from_list(
        [
            {"prompt": " ".join(names[token] for token in prompt), "wanted": wanted}
            for prompt, wanted in tiny().problems(generator, 8 * steps)
        ]
    )


def rewards(completion_ids: list[list[int]], wanted: list[list[int]], **_: Any) -> list[float]:
    """Share of the wanted tokens that are in their place, for each completion."""
    return [reward(own, right) for own, right in zip(completion_ids, wanted, strict=True)]


class Sampler:
    """What TRL asks of vLLM: it generates, and returns the log-probability of every token."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def sync_weights(self) -> None:
        """Nothing to do: sampler and trainer share their weights."""

    def generate(self, prompts: list[list[int]], **_: Any) -> tuple[Any, ...]:
        """(prompts, completions, log-probabilities of each token, None), as TRL's vLLM client."""
        model = self.trainer.model
        autocast = self.trainer.accelerator.autocast() if self.trainer.args.bf16 else nullcontext()
        model.eval()
        with torch.no_grad(), autocast:
            completions, logprobs = self.sample(model, prompts)
        model.train()
        return prompts, completions, [[[value] for value in row] for row in logprobs], None

    def sample(self, model: Any, prompts: list[list[int]]) -> tuple[list[Any], list[Any]]:
        """Completions up to their end of sequence, and the log-probabilities of their tokens."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (longest - len(each)) + each for each in prompts])
        out = model.generate(
            input_ids=ids, attention_mask=(ids != PAD).long(), output_logits=True,
            return_dict_in_generate=True, generation_config=self.trainer.generation_config,
        )  # fmt: skip
        tokens = out.sequences[:, longest:]
        values = [logprobs_of(step, at) for step, at in zip(out.logits, tokens.T, strict=True)]
        completions, logprobs = [], []
        for row, own in zip(tokens.tolist(), torch.stack(values, 1).tolist(), strict=True):
            length = row.index(EOS) + 1 if EOS in row else len(row)
            completions.append(row[:length])
            logprobs.append(own[:length])
        return completions, logprobs


class ContinuousSampler(Sampler):
    """transformers' continuous batching; its log-probabilities are the logarithms of a softmax."""

    def sample(self, model: Any, prompts: list[list[int]]) -> tuple[list[Any], list[Any]]:
        """See `Sampler.sample`."""
        from transformers import ContinuousBatchingConfig

        outputs = model.generate_batch(
            prompts, generation_config=self.trainer.generation_config, progress_bar=False,
            continuous_batching_config=ContinuousBatchingConfig(
                return_logprobs=True, num_blocks=64, page_size=16, max_batch_tokens=256
            ),
        )  # fmt: skip
        answered = list(outputs.values())
        return [each.generated_tokens for each in answered], [each.logprobs for each in answered]


SAMPLERS = {"generate": Sampler, "continuous": ContinuousSampler}


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(rows,) float32, by the steps of TRL's trainer, so that a difference is one of the logits.

    `logits` are (rows, vocabulary), `tokens` (rows,). The vocabulary is folded tile by tile.
    """
    scores = logits.float()
    largest = torch.full(scores.shape[:1], -torch.inf)
    total = torch.zeros(scores.shape[:1])
    for tile in torch.split(scores, TILE, dim=-1):
        most = torch.maximum(largest, tile.amax(-1))
        total = total * torch.exp(largest - most) + torch.exp(tile - most[:, None]).sum(-1)
        largest = most
    return scores.gather(1, tokens[:, None])[:, 0] - (largest + torch.log(total))


def table_of(measured: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each arm."""
    head = (
        "| arm | reward, last 5 steps | mean logp difference | largest | smallest ratio "
        "| largest ratio | clipped | repeats bit for bit |\n|" + "---|" * 8 + "\n"
    )
    return head + "".join(row_of(each) + "\n" for each in measured)


def row_of(measured: dict[str, Any]) -> str:
    """One arm as a row of the table."""
    steps = measured["steps"]
    values = {name: np.array([line[name] for line in steps]) for name in KEPT}
    last = values["reward"][-5:].mean()
    return (
        f"| {measured['arm']} | {last:.3f} | {values[f'{DIFFERENCE}/mean'].mean():.2g} "
        f"| {values[f'{DIFFERENCE}/max'].max():.2g} | {values[f'{RATIO}/min'].min():.7g} "
        f"| {values[f'{RATIO}/max'].max():.7g} | {values['clip_ratio/region_mean'].mean():.2%} "
        f"| {'yes' if measured['repeats'] else 'no'} |"
    )


def write(folder: Path, measured: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Write the table, the numbers of every step, and the environment."""
    import transformers
    import trl

    folder.mkdir(parents=True, exist_ok=True)
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    data = {"options": options, "versions": versions, "arms": measured}
    data["environment"] = environment.collect()
    text = json.dumps(data, indent=1, default=str)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table_of(measured), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
