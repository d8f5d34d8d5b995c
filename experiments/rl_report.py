"""The table, the summary and the picture of `on_policy_rl.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rl_loop import Curves

LAST = 5
"""Steps over which the reward at the end is taken."""
BASE = "none"
"""The arm that the others are compared with."""
PANELS = (
    ("reward", "mean reward", "linear"),
    ("gradient_norm", "gradient norm", "linear"),
    ("k3", "K3 (nats)", "symlog"),
    ("max_abs", "largest |r| (nats)", "symlog"),
    ("ratio_outside", "share of ratios outside [0.5, 2]", "linear"),
    ("ratio_largest", "smallest and largest ratio", "log"),
)


def arms_of(curves: Sequence[Curves]) -> list[str]:
    """Names of the arms, in the order in which they ran."""
    return list(dict.fromkeys(each.arm for each in curves))


def own_of(curves: Sequence[Curves], arm: str) -> list[Curves]:
    """One arm's curves, a seed each."""
    return [each for each in curves if each.arm == arm]


def at_end(curves: Curves) -> float:
    """Mean reward of the last steps."""
    return float(np.mean(curves.reward[-LAST:]))


def held_out(curves: Curves) -> float | None:
    """Mean reward of the trained policy on the held-out problems; None if not measured."""
    return curves.held_out


def table_of(curves: Sequence[Curves], repeats: dict[str, bool]) -> str:
    """Markdown: a row for each arm, means over seeds with their range."""
    lines = [
        f"| arm | seeds | reward, last {LAST} steps | reward on held-out problems | mean K3 "
        "| largest abs(r) | ratios outside [0.5, 2] | smallest to largest ratio "
        "| mean gradient norm | repeats bit for bit |",
        "|" + "---|" * 10,
    ]
    lines += [_row(arm, own_of(curves, arm), repeats) for arm in arms_of(curves)]
    return "\n".join(lines) + "\n"


def _row(arm: str, own: Sequence[Curves], repeats: dict[str, bool]) -> str:
    said = {True: "yes", False: "no", None: "not run twice"}[repeats.get(arm)]
    return (
        f"| {arm} | {len(own)} | {_spread([at_end(each) for each in own])} "
        f"| {_spread([held_out(each) for each in own])} "
        f"| {np.mean([each.k3 for each in own]):.2e} "
        f"| {max(max(each.max_abs) for each in own):.2g} "
        f"| {np.mean([each.ratio_outside for each in own]):.3%} "
        f"| {_ratios(own)} "
        f"| {np.mean([each.gradient_norm for each in own]):.3f} | {said} |"
    )


def _spread(measured: Sequence[float | None]) -> str:
    """Mean, and range over seeds."""
    values = [value for value in measured if value is not None]
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "–"


def _ratios(own: Sequence[Curves]) -> str:
    """The smallest and the largest ratio; earlier results have none."""
    if not all(each.ratio_largest for each in own):
        return "–"
    smallest, largest = (
        min(min(each.ratio_smallest) for each in own),
        max(max(each.ratio_largest) for each in own),
    )
    return f"{smallest:.3g} to {largest:.3g}"


def summary_of(curves: Sequence[Curves], options: dict[str, Any]) -> str:
    """Markdown: the options, and each arm's reward against that of the arm without correction."""
    seeds = sorted({each.seed for each in curves})
    steps = sorted({len(each.reward) for each in curves})
    minutes = sum(each.processor_s for each in curves) / 60
    lines = [
        "# On-policy reinforcement learning: what was run",
        "",
        f"Model: {options['model']}. Arms: {', '.join(arms_of(curves))}. Seeds: {len(seeds)}, the "
        f"same warm-up and problems for every arm of a seed. Policy-gradient steps: "
        f"{' or '.join(map(str, steps))}, after {options['warm_up']} supervised ones. "
        f"Learning rate: {options['learning_rate']:g}. Processor time of the steps, without the "
        f"repeats: {minutes:.0f} minutes.",
        "",
        *_before(options),
        f"Differences from the arm `{BASE}`, by seed (mean, and range over seeds):",
        "",
        f"| arm | reward, last {LAST} steps | reward on held-out problems |",
        "|---|---|---|",
    ]
    lines += [
        f"| {arm} | {_difference(curves, arm, at_end)} | {_difference(curves, arm, held_out)} |"
        for arm in arms_of(curves)
        if arm != BASE
    ]
    return "\n".join(lines) + "\n"


def _before(options: dict[str, Any]) -> list[str]:
    measured = options.get("held_out_before")
    if not measured:
        return []
    return [f"Reward on held-out problems after the warm-up: {_spread([*measured.values()])}.", ""]


def _difference(curves: Sequence[Curves], arm: str, value: Callable[[Curves], float | None]) -> str:
    base = {each.seed: value(each) for each in own_of(curves, BASE)}
    pairs = [(value(each), base.get(each.seed)) for each in own_of(curves, arm)]
    gaps = [own - other for own, other in pairs if own is not None and other is not None]
    return f"{np.mean(gaps):+.3f} ({min(gaps):+.3f} to {max(gaps):+.3f})" if gaps else "–"


def draw(curves: Sequence[Curves], path: Path) -> None:
    """Each measure by step: the mean over seeds, and the range of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(3, 2).ravel()
    for axes, (name, title, scale) in zip(panels, PANELS, strict=True):
        for index, arm in enumerate(arms_of(curves)):
            own, colour = own_of(curves, arm), f"C{index}"
            _line(axes, [getattr(each, name) for each in own], colour, arm)
            if name == "ratio_largest":
                _line(axes, [each.ratio_smallest for each in own], colour, None)
        axes.set_yscale(scale, **({"linthresh": 1e-6} if scale == "symlog" else {}))
        axes.set_xlabel("step")
        axes.set_title(title)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(handles[1]))
    figure.savefig(path, metadata={"Date": None})


def _line(axes: Any, runs: Sequence[Sequence[float]], colour: str, label: str | None) -> None:
    shortest = min(map(len, runs))
    values = np.array([run[:shortest] for run in runs])
    axes.plot(values.mean(0), color=colour, label=label)
    axes.fill_between(
        range(shortest), values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0
    )
