"""On-policy reinforcement learning with a sampler that equals the trainer, and ones that do not.

    python experiments/on_policy_rl.py            # minutes on two cores; no downloads
    python experiments/on_policy_rl.py --model embedded --threads 1

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
not. This arm runs twice for every seed and must repeat bit for bit; the other arms run twice for
one seed.

The model is tiny and made here, so that all arms fit into minutes: the size of the gap is that of
a tiny model. `--model embedded` trains the embedded model of 135 million weights, in all arms but
`float32`: the warm-up all of its weights, policy gradients those of its last four layers. The gap
is that of the whole model.

Every step is kept under `--state`: the same command goes on after an interruption, and with more
`--steps` it lengthens what it has. Writes `results.json`, `table.md`, `summary.md` and `curves.svg`
to `results/on_policy_rl/`, those of the embedded model to its folder `embedded/`.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_loop import ARMS, Arm, Curves, held_out_reward, train, warmed_up
from rl_report import draw, summary_of, table_of
from rl_tasks import TASKS, Task

from detcheck import environment

RESULTS = Path(__file__).resolve().parents[1] / "results"
EMBEDDED_ARMS = ("none", "truncated", "bitwise", "stale")
STEPS = {"tiny": 40, "embedded": 36}
WARM_UP = {"tiny": 100, "embedded": 3}
FIRST_SEED = 0


def main() -> None:
    """Run every arm, and write the results."""
    args = parse()
    task = TASKS[args.model]()
    task = replace(task, learning_rate=args.learning_rate or task.learning_rate)
    options = {
        "model": args.model, "warm_up": args.warm_up, "learning_rate": task.learning_rate,
        "threads": torch.get_num_threads(), "steps": args.steps, "seeds": args.seeds,
    }  # fmt: skip
    check_state(args.state, options)
    curves: list[Curves] = []
    before: dict[int, float] = {}
    repeats: dict[str, bool] = {}
    for first, again in runs(args, task, before):
        curves.append(first)
        if again is not None:
            same = again.numbers == first.numbers
            repeats[first.arm] = same and repeats.get(first.arm, True)
        if not repeats.get("bitwise", True):
            raise RuntimeError("The bitwise arm does not repeat bit for bit.")
        write(args.out, curves, repeats, options | {"held_out_before": before})
    print((args.out / "table.md").read_text())


def parse() -> argparse.Namespace:
    """The options, with the defaults of the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=tuple(TASKS), default="tiny")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--warm-up", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--state", type=Path, help="folder in which unfinished runs are kept")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = "on_policy_rl/embedded" if args.model == "embedded" else "on_policy_rl"
    args.out = args.out or RESULTS / folder
    args.state = args.state or RESULTS / "runs" / folder
    args.steps = args.steps or STEPS[args.model]
    args.warm_up = WARM_UP[args.model] if args.warm_up is None else args.warm_up
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def check_state(state: Path, options: dict[str, Any]) -> None:
    """Raise SystemExit if the kept runs were made with other options. Steps and seeds may grow."""
    fixed = {name: value for name, value in options.items() if name not in ("steps", "seeds")}
    path = state / "options.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != fixed:
        raise SystemExit(
            f"{state} has runs with other options. Give another --state, or delete it."
        )
    state.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fixed) + "\n", encoding="utf-8")


def runs(
    args: argparse.Namespace, task: Task, before: dict[int, float]
) -> Iterator[tuple[Curves, Curves | None]]:
    """Each run of each arm, seed by seed, and its repeat if it has one.

    Sets `before` of each seed: the reward on held-out problems after the warm-up.
    """
    large = args.model == "embedded"
    for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
        start = warmed_up(seed, args.warm_up, task)
        before[seed] = held_out_reward(copy.deepcopy(start).bfloat16(), task)
        for arm in (arm for arm in ARMS if not large or arm.name in EMBEDDED_ARMS):
            first = _run(args, task, arm, start, seed, "")
            twice = arm.invariant or seed == FIRST_SEED
            yield first, _run(args, task, arm, start, seed, "-again") if twice else None


def _run(
    args: argparse.Namespace, task: Task, arm: Arm, start: Any, seed: int, part: str
) -> Curves:
    state = args.state / f"{arm.name}-{seed}{part}.pt"
    curves = train(arm, start, seed, args.steps, task, state)
    print(line_of(curves), flush=True)
    return curves


def line_of(curves: Curves) -> str:
    """One run in a line."""
    return (
        f"{curves.arm:<10} seed {curves.seed}: reward {curves.reward[0]:.3f} to "
        f"{np.mean(curves.reward[-5:]):.3f}, held out {curves.held_out:.3f}, mean K3 "
        f"{np.mean(curves.k3):.2e}, largest |r| {max(curves.max_abs):.2g}, "
        f"{curves.processor_s:.0f} s of processor time"
    )


def write(
    folder: Path, curves: list[Curves], repeats: dict[str, bool], options: dict[str, Any]
) -> None:
    """Write the table, the summary, the curves as numbers and as a picture, and the environment."""
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
    (folder / "summary.md").write_text(summary_of(curves, options), encoding="utf-8")
    draw(curves, folder / "curves.svg")


if __name__ == "__main__":
    main()
