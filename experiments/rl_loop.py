"""The training loop of `on_policy_rl.py`: one arm, one seed; every step is kept on disk."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from rl_tasks import Problem, Task, reward, tiny

import detcheck
from detcheck.analysis.mismatch.measures import measure
from detcheck.kernels.settings import FAMILIES

TRUNCATION = 2.0
STALE_UPDATES = 8
HELD_OUT_SEED = 7
"""Seed of the problems and of the samples by which a trained policy is judged."""


@dataclass(frozen=True)
class Arm:
    """How one arm computes."""

    name: str
    invariant: bool = False
    truncated: bool = False
    trainer_float32: bool = False
    stale: int = 0
    """By how many updates the sampler is behind."""


ARMS = (
    Arm("none"),
    Arm("truncated", truncated=True),
    Arm("bitwise", invariant=True),
    Arm("float32", trainer_float32=True),
    Arm("stale", stale=STALE_UPDATES),
)


@dataclass
class Curves:
    """One run of one arm: a value a step."""

    arm: str
    seed: int
    reward: list[float] = field(default_factory=list)
    k3: list[float] = field(default_factory=list)
    max_abs: list[float] = field(default_factory=list)
    ratio_outside: list[float] = field(default_factory=list)
    ratio_smallest: list[float] = field(default_factory=list)
    ratio_largest: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    held_out: float | None = None
    """Mean reward on problems of its own, of the policy after the last step; None: not measured."""
    elapsed_s: float = 0.0
    processor_s: float = 0.0

    @property
    def numbers(self) -> tuple[object, ...]:
        """Everything that a repeat must give again."""
        return (
            self.reward, self.k3, self.max_abs, self.ratio_outside, self.ratio_smallest,
            self.ratio_largest, self.gradient_norm, self.held_out,
        )  # fmt: skip


def warmed_up(seed: int, steps: int, task: Task | None = None) -> Any:
    """A model after supervised steps on all weights, the same for every arm of a seed."""
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


def train(
    arm: Arm,
    start: Any,
    seed: int,
    steps: int,
    task: Task | None = None,
    state: Path | None = None,
) -> Curves:
    """One run of an arm, from `start`, up to `steps` steps.

    With `state` the run is kept in that file after every step. If the file is there, the run goes
    on from it. Raises RuntimeError if the bitwise arm has a gap.
    """
    task = task or tiny()
    run = Run(arm, start, seed, task)
    if state is not None and state.exists():
        run.load(state)
    with kernels(invariant=arm.invariant):
        while len(run.curves.reward) < steps:
            run.step()
            if state is not None:
                run.save(state)
        run.curves.held_out = run.held_out()
    return run.curves


@contextmanager
def kernels(*, invariant: bool) -> Iterator[None]:
    """Invariant kernels on both sides, or stock ones. Raises RuntimeError if their proof fails."""
    if not invariant:
        yield
        return
    with detcheck.batch_invariant(FAMILIES) as mode:
        yield
        if mode.proof().fault is not None:
            raise RuntimeError(mode.proof().fault)


class Run:
    """The weights and the curves of one run.

    `master` has float32 weights, which the optimiser changes. `policy` is the same in bfloat16 and
    computes. `behind` has the weights of the sampler's policies, oldest first.
    """

    def __init__(self, arm: Arm, start: Any, seed: int, task: Task):
        self.arm, self.task = arm, task
        self.master = copy.deepcopy(start)
        task.freeze(self.master)
        self.policy = copy.deepcopy(self.master).bfloat16()
        self.sampler = copy.deepcopy(self.policy) if arm.stale else self.policy
        self.optimiser = torch.optim.AdamW(
            trained(self.master), lr=task.learning_rate, weight_decay=0.0
        )
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.behind: list[list[torch.Tensor]] = []
        self.curves = Curves(arm.name, seed)

    def step(self) -> None:
        """Sample, measure the gap, and make one update."""
        began = perf_counter(), process_time()
        self._place_weights()
        task = self.task
        batch = [
            each
            for each in task.problems(self.generator, task.prompts)
            for _ in range(task.samples)
        ]
        prompts = [prompt for prompt, _ in batch]
        completions, recorded = sample(self.sampler, prompts, self.generator, task)
        rewards = rewards_of(completions, batch)
        self._update(list(zip(prompts, completions, strict=True)), recorded, rewards)
        self.curves.elapsed_s = round(self.curves.elapsed_s + perf_counter() - began[0], 2)
        self.curves.processor_s = round(self.curves.processor_s + process_time() - began[1], 2)

    def _place_weights(self) -> None:
        """Bring the policy to the master's weights, and a stale sampler to older ones."""
        copy_into(trained(self.policy), trained(self.master))
        if self.arm.stale:
            newest = [weight.detach().clone() for weight in trained(self.policy)]
            self.behind = [*self.behind, newest][-self.arm.stale - 1 :]
            copy_into(trained(self.sampler), self.behind[0])

    def _update(
        self, answered: list[Problem], recorded: list[list[float]], rewards: torch.Tensor
    ) -> None:
        """One policy-gradient step; adds its measures to the curves."""
        trainer = self.master if self.arm.trainer_float32 else self.policy
        logprobs, mask = trainer_logprobs(trainer, answered, self.task.pad)
        own = [row[chosen.bool()] for row, chosen in zip(logprobs, mask, strict=True)]
        self._measure(own, recorded)
        loss = loss_of(self.arm, own, recorded, self._advantages(rewards))
        trainer.zero_grad()
        loss.backward()
        for weight, computed in zip(trained(self.master), trained(trainer), strict=True):
            weight.grad = computed.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(trained(self.master), 1.0)
        self.optimiser.step()
        self.curves.reward.append(float(rewards.mean()))
        self.curves.gradient_norm.append(float(norm))

    def _advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        """(completions,): rewards within the group of their prompt, as GRPO has them."""
        groups = rewards.view(self.task.prompts, self.task.samples)
        spread = groups.std(1, keepdim=True) + 1e-4
        return ((groups - groups.mean(1, keepdim=True)) / spread).flatten()

    def _measure(self, own: list[torch.Tensor], recorded: list[list[float]]) -> None:
        """Add the gap between sampler and trainer to the curves."""
        sampler = [np.array(each, np.float32) for each in recorded]
        trainer = [each.detach().numpy() for each in own]
        gap = measure(sampler, trainer, resamples=0)
        if self.arm.invariant and gap.max_abs > 0:
            raise RuntimeError("The bitwise arm has a gap between sampler and trainer.")
        ratios = np.exp(np.concatenate(trainer).astype(np.float64) - np.concatenate(sampler))
        self.curves.k3.append(gap.k3)
        self.curves.max_abs.append(gap.max_abs)
        self.curves.ratio_outside.append(gap.ratio_outside)
        self.curves.ratio_smallest.append(float(ratios.min()))
        self.curves.ratio_largest.append(float(ratios.max()))

    def held_out(self) -> float:
        """Mean reward of the policy as trained so far, on the same problems in every run."""
        copy_into(trained(self.policy), trained(self.master))
        return held_out_reward(self.policy, self.task)

    def save(self, path: Path) -> None:
        """Keep everything that the next step needs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "curves": asdict(self.curves),
            "weights": [weight.detach() for weight in trained(self.master)],
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "behind": self.behind,
        }
        new = path.with_suffix(".new")
        torch.save(kept, new)
        new.replace(path)

    def load(self, path: Path) -> None:
        """Go on from the state that `save` kept."""
        kept = torch.load(path, weights_only=True)
        self.curves = Curves(**kept["curves"])
        copy_into(trained(self.master), kept["weights"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.generator.set_state(kept["generator"])
        self.behind = kept["behind"]


def trained(model: Any) -> list[Any]:
    """The weights that are not frozen."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def copy_into(targets: list[Any], sources: list[Any]) -> None:
    """Copy the values of tensors, in the targets' number type."""
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def held_out_reward(policy: Any, task: Task) -> float:
    """Mean reward of one sample of each held-out problem."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    batch = task.problems(generator, task.held_out)
    completions, _ = sample(policy, [prompt for prompt, _ in batch], generator, task)
    return float(rewards_of(completions, batch).mean())


def rewards_of(completions: list[list[int]], batch: list[Problem]) -> torch.Tensor:
    """(completions,) float32."""
    pairs = zip(completions, batch, strict=True)
    return torch.tensor([reward(own, wanted) for own, (_, wanted) in pairs])


def loss_of(
    arm: Arm, own: list[torch.Tensor], recorded: list[list[float]], advantages: torch.Tensor
) -> Any:
    """The policy gradient's loss, a mean over tokens; weighted if the arm is truncated."""
    terms = []
    for values, record, advantage in zip(own, recorded, advantages, strict=True):
        ratio = (values.detach() - torch.tensor(record)).exp().clamp(max=TRUNCATION)
        terms.append(-advantage * (ratio * values if arm.truncated else values))
    return torch.cat(terms).mean()


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
                past_key_values=cache, use_cache=True, logits_to_keep=1,
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
    # Before the shortest prompt's last token no row has a completion: no logits are needed there.
    at = at[starts.min() - 1 :]
    out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=at[:-1])
    logprobs = out.logits.float().log_softmax(-1).gather(2, ids[:, at[1:], None])[..., 0]
    chosen = (at[1:] >= starts[:, None]) & (at[1:] < lengths[:, None])
    return logprobs, chosen.float()
