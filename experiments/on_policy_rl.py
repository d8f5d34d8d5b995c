"""On-policy reinforcement learning with a sampler that equals the trainer, and ones that do not.

    python experiments/on_policy_rl.py            # minutes on two cores; no downloads
    python experiments/on_policy_rl.py --model embedded --steps 6 --warm-up 12 --seeds 2

A Llama of about 0.3 million weights learns to reverse a row of digits: a short supervised warm-up,
then policy gradients with advantages within groups of samples (as GRPO has them), one update a
batch. The sampler decodes left-padded batches with a cache, the trainer computes right-padded
batches with gradients. Every arm starts from the same warm-up and sees the same prompts:

- `none`: stock kernels on both sides, no correction;
- `truncated`: the same, each token weighted by its importance ratio, at most 2;
- `bitwise`: `fully-invariant` kernels on both sides;
- `float32`: no correction, the trainer in float32 and the sampler in bfloat16;
- `stale`: no correction, the sampler some updates behind: the positive control.

In the arm `bitwise` K3 and max |r| must be exactly 0 at every step; the script stops if they are
not. Each arm runs twice for one seed, to see whether its curves repeat bit for bit.

The model is tiny and made here, so that all arms fit into minutes: the size of the gap is that of
a tiny model. `--model embedded` trains the embedded model of 135 million weights for a few steps,
in the arms `none` and `bitwise` alone. Writes `results.json`, `table.md` and `curves.svg` to
`results/on_policy_rl/`, those of the embedded model to its folder `embedded/`.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rl_tasks import TASKS, Problem, Task, reward, tiny

import detcheck
from detcheck import environment
from detcheck.analysis.mismatch.measures import measure
from detcheck.kernels.settings import FAMILIES

RESULTS = Path(__file__).resolve().parents[1] / "results" / "on_policy_rl"
TRUNCATION = 2.0
STALE_UPDATES = 8


@dataclass(frozen=True)
class Arm:
    """How one arm computes."""

    name: str
    invariant: bool = False
    truncated: bool = False
    trainer_float32: bool = False
    stale: int = 0


ARMS = (
    Arm("none"),
    Arm("truncated", truncated=True),
    Arm("bitwise", invariant=True),
    Arm("float32", trainer_float32=True),
    Arm("stale", stale=STALE_UPDATES),
)
EMBEDDED_ARMS = ("none", "bitwise")


@dataclass
class Curves:
    """One run of one arm: a value a step."""

    arm: str
    seed: int
    reward: list[float] = field(default_factory=list)
    k3: list[float] = field(default_factory=list)
    max_abs: list[float] = field(default_factory=list)
    ratio_outside: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def numbers(self) -> tuple[list[float], ...]:
        """Everything that a repeat must give again."""
        return self.reward, self.k3, self.max_abs, self.ratio_outside, self.gradient_norm


def main() -> None:
    """Run every arm, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=tuple(TASKS), default="tiny")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    large = args.model == "embedded"
    folder = args.out or (RESULTS / "embedded" if large else RESULTS)
    task, curves, repeats = TASKS[args.model](), [], {}
    for seed in range(args.seeds):
        start = warmed_up(seed, args.warm_up, task)
        for arm in (arm for arm in ARMS if not large or arm.name in EMBEDDED_ARMS):
            curves.append(train(arm, start, seed, args.steps, task))
            print(line_of(curves[-1]), flush=True)
            if seed == 0:
                again = train(arm, start, seed, args.steps, task)
                repeats[arm.name] = again.numbers == curves[-1].numbers
    if not repeats["bitwise"]:
        raise RuntimeError("The bitwise arm does not repeat bit for bit.")
    write(folder, curves, repeats, vars(args) | {"out": folder.name})
    print((folder / "table.md").read_text())


def warmed_up(seed: int, steps: int, task: Task | None = None) -> Any:
    """A model after supervised steps, the same for every arm of a seed."""
    task = task or tiny()
    torch.manual_seed(seed)
    model, generator = task.new_model(), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=task.warm_up_rate)
    for _ in range(steps):
        batch = task.problems(generator, task.warm_up_rows)
        logprobs, mask = trainer_logprobs(model, batch, task.pad)
        loss: Any = -(logprobs * mask).sum() / mask.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def train(arm: Arm, start: Any, seed: int, steps: int, task: Task | None = None) -> Curves:
    """One run of an arm. Raises RuntimeError if the bitwise arm has a gap."""
    task = task or tiny()
    master = copy.deepcopy(start)
    optimiser = torch.optim.AdamW(master.parameters(), lr=task.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1000 + seed)
    curves, began = Curves(arm.name, seed), perf_counter()
    policies: list[Any] = []
    with kernels(arm):
        for _ in range(steps):
            policy = copy.deepcopy(master).bfloat16()
            policies = [*policies, policy][-arm.stale - 1 :]
            asked = task.problems(generator, task.prompts)
            batch = [each for each in asked for _ in range(task.samples)]
            prompts = [prompt for prompt, _ in batch]
            completions, recorded = sample(policies[0], prompts, generator, task)
            rewards = torch.tensor(
                [reward(own, wanted) for own, (_, wanted) in zip(completions, batch, strict=True)]
            )
            trainer = master if arm.trainer_float32 else policy
            answered = list(zip(prompts, completions, strict=True))
            update(arm, trainer, master, optimiser, answered, recorded, rewards, curves, task)
    curves.elapsed_s = round(perf_counter() - began, 1)
    if arm.invariant and max(curves.max_abs) > 0:
        raise RuntimeError("The bitwise arm has a gap between sampler and trainer.")
    return curves


@contextmanager
def kernels(arm: Arm) -> Iterator[None]:
    """Invariant kernels on both sides, or stock ones."""
    if not arm.invariant:
        yield
        return
    with detcheck.batch_invariant(FAMILIES) as mode:
        yield
        if mode.proof().fault is not None:
            raise RuntimeError(mode.proof().fault)


def sample(
    policy: Any, prompts: list[list[int]], generator: torch.Generator, task: Task
) -> tuple[list[list[int]], list[list[float]]]:
    """Completions at temperature 1, and the log-probability of each of their tokens."""
    longest = max(map(len, prompts))
    padding = [longest - len(each) for each in prompts]
    rows = zip(padding, prompts, strict=True)
    ids = torch.tensor([[task.pad] * missing + each for missing, each in rows])
    mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    completions: list[list[int]] = [[] for _ in prompts]
    recorded: list[list[float]] = [[] for _ in prompts]
    with torch.no_grad():
        cache = None
        for _ in range(task.most_tokens):
            out = policy(
                input_ids=ids, attention_mask=mask, position_ids=positions,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            cache = out.past_key_values
            logprobs = out.logits[:, -1].float().log_softmax(-1)
            tokens = torch.multinomial(logprobs.exp(), 1, generator=generator)
            own = logprobs.gather(1, tokens)
            for row, (token, logprob) in enumerate(zip(tokens[:, 0], own[:, 0], strict=True)):
                if task.eos not in completions[row]:
                    completions[row].append(int(token))
                    recorded[row].append(float(logprob))
            ids, positions = tokens, positions[:, -1:] + 1
            mask = torch.cat((mask, torch.ones_like(tokens)), 1)
    return completions, recorded


def trainer_logprobs(
    model: Any, answered: list[Problem], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the completions' tokens, (rows, tokens), and 1 for each such token."""
    sequences = [torch.tensor(prompt + own) for prompt, own in answered]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(each) for each in sequences])
    starts = torch.tensor([len(prompt) for prompt, _ in answered])
    at = torch.arange(ids.shape[1])
    mask = (at < lengths[:, None]).long()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logprobs = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    chosen = (at[1:] >= starts[:, None]) & (at[1:] < lengths[:, None])
    return logprobs, chosen.float()


def update(
    arm: Arm,
    trainer: Any,
    master: Any,
    optimiser: Any,
    answered: list[Problem],
    recorded: list[list[float]],
    rewards: torch.Tensor,
    curves: Curves,
    task: Task,
) -> None:
    """One policy-gradient step; adds its measures to `curves`."""
    logprobs, mask = trainer_logprobs(trainer, answered, task.pad)
    own = [row[chosen.bool()] for row, chosen in zip(logprobs, mask, strict=True)]
    gap = measure(
        [np.array(each, np.float32) for each in recorded],
        [each.detach().numpy() for each in own],
        resamples=0,
    )
    groups = rewards.view(task.prompts, task.samples)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    terms = []
    for values, record, advantage in zip(own, recorded, advantages.flatten(), strict=True):
        ratio = (values.detach() - torch.tensor(record)).exp().clamp(max=TRUNCATION)
        terms.append(-advantage * (ratio * values if arm.truncated else values))
    loss: Any = torch.cat(terms).mean()
    trainer.zero_grad()
    loss.backward()
    for weight, computed in zip(master.parameters(), trainer.parameters(), strict=True):
        weight.grad = computed.grad.float()
    norm = torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0)
    optimiser.step()
    curves.reward.append(float(rewards.mean()))
    curves.k3.append(gap.k3)
    curves.max_abs.append(gap.max_abs)
    curves.ratio_outside.append(gap.ratio_outside)
    curves.gradient_norm.append(float(norm))


def line_of(curves: Curves) -> str:
    """One run in a line."""
    return (
        f"{curves.arm:<10} seed {curves.seed}: reward {curves.reward[0]:.3f} to "
        f"{np.mean(curves.reward[-5:]):.3f}, mean K3 {np.mean(curves.k3):.2e}, largest |r| "
        f"{max(curves.max_abs):.2g}, {curves.elapsed_s} s"
    )


def table_of(curves: list[Curves], repeats: dict[str, bool]) -> str:
    """Markdown: a row for each arm, means over seeds with their range."""
    lines = [
        "| arm | reward, last 5 steps | mean K3 | largest abs(r) | ratios outside [0.5, 2] "
        "| mean gradient norm | repeats bit for bit |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(each.arm for each in curves):
        own = [each for each in curves if each.arm == arm]
        last = [float(np.mean(each.reward[-5:])) for each in own]
        lines.append(
            f"| {arm} | {np.mean(last):.3f} ({min(last):.3f} to {max(last):.3f}) "
            f"| {np.mean([each.k3 for each in own]):.2e} "
            f"| {max(max(each.max_abs) for each in own):.2g} "
            f"| {np.mean([each.ratio_outside for each in own]):.3%} "
            f"| {np.mean([each.gradient_norm for each in own]):.3f} "
            f"| {'yes' if repeats.get(arm) else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def draw(curves: list[Curves], path: Path) -> None:
    """Reward and K3 by step: the mean over seeds, and the range of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("reward", "k3"), strict=True):
        for arm in dict.fromkeys(each.arm for each in curves):
            values = np.array([getattr(each, name) for each in curves if each.arm == arm])
            (drawn,) = axes.plot(values.mean(0), label=arm)
            axes.fill_between(
                range(values.shape[1]), values.min(0), values.max(0),
                color=drawn.get_color(), alpha=0.15, linewidth=0,
            )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_title(name)
    axes.set_yscale("symlog", linthresh=1e-6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(ARMS))
    figure.savefig(path, metadata={"Date": None})


def write(
    folder: Path, curves: list[Curves], repeats: dict[str, bool], options: dict[str, Any]
) -> None:
    """Write the table, the curves as numbers and as a picture, and the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "options": options,
        "repeats": repeats,
        "curves": [asdict(each) for each in curves],
        "environment": environment.collect(),
    }
    text = json.dumps(data, indent=1, default=str)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table_of(curves, repeats), encoding="utf-8")
    draw(curves, folder / "curves.svg")


if __name__ == "__main__":
    main()
