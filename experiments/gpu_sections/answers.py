"""The answers to one prompt under one setting of the kernels, over loads: counts and times."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

TokenIds = tuple[int, ...]


@dataclass
class Answers:
    """What one setting of the kernels answered."""

    kernels: str
    counts: Counter[TokenIds] = field(default_factory=Counter)
    loads: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By load, the last trial's figures."""
    entry_s: float = 0.0
    """Seconds to enter and leave the mode, which no trial's time includes."""
    self_check: str = "passed"
    failed: bool = False

    def add(self, load: int, result: Any) -> None:
        """Count the completions of one trial of the engine."""
        given = Counter[TokenIds](completion.token_ids for _, completion in result.completions)
        self.note(load, given, result.elapsed_s)

    def note(self, load: int, given: Counter[TokenIds], elapsed_s: float) -> None:
        """Count the answers of `load` requests, which took `elapsed_s` seconds."""
        self.counts.update(given)
        tokens = sum(len(answer) * count for answer, count in given.items())
        self.loads[load] = {
            "load": load,
            "completions": sum(given.values()),
            "distinct": len(given),
            "elapsed_s": elapsed_s,
            "tokens_per_second": tokens / elapsed_s,
        }

    def group(self) -> dict[str, Any]:
        """The answers as plain data."""
        counts = [count for _, count in self.counts.most_common()]
        return {
            "kernels": self.kernels,
            "completions": sum(counts),
            "loads": list(self.loads.values()),
            "distinct": len(counts),
            "counts": counts,
            "first_divergence": first_divergence(list(self.counts)),
            "entry_s": self.entry_s,
            "elapsed_s": sum(load["elapsed_s"] for load in self.loads.values()),
            "self_check": self.self_check,
        }


def first_divergence(answers: list[TokenIds]) -> int | None:
    """The first token at which any two answers differ; None if all are equal."""
    if len(answers) < 2:
        return None
    for position, tokens in enumerate(zip(*answers, strict=False)):
        if len(set(tokens)) > 1:
            return position
    return min(map(len, answers))


def show_groups(groups: list[dict[str, Any]]) -> list[str]:
    """One line a setting: how many answers there are over all loads."""
    lines = [
        "| kernels | completions | distinct | most common | first divergence | entry ms "
        "| self-check |",
        "|---" * 7 + "|",
    ]
    for group in groups:
        divergence = group["first_divergence"]
        lines.append(
            f"| {group['kernels']} | {group['completions']} | {group['distinct']} | "
            f"{max(group['counts'], default=0)} | {'–' if divergence is None else divergence} | "
            f"{1000 * group['entry_s']:.0f} | {group['self_check']} |"
        )
    return lines


def show_loads(groups: list[dict[str, Any]]) -> list[str]:
    """One line a load: distinct answers, tokens a second and the cost of each setting."""
    if not groups:
        return []
    stock = {load["load"]: load for load in groups[0]["loads"]}
    lines = [
        "distinct answers, tokens/s, and in brackets the time against stock",
        "",
        "| load | " + " | ".join(group["kernels"] for group in groups) + " |",
        "|---" * (1 + len(groups)) + "|",
    ]
    by_load = [{load["load"]: load for load in group["loads"]} for group in groups]
    for size in sorted({size for loads in by_load for size in loads}):
        cells = " | ".join(cell(loads.get(size), stock.get(size)) for loads in by_load)
        lines.append(f"| {size} | {cells} |")
    return lines


def cell(load: dict[str, Any] | None, stock: dict[str, Any] | None) -> str:
    """`1, 3500 (1.20)`: distinct answers, tokens a second, time against stock."""
    if load is None:
        return "–"
    text = f"{load['distinct']}, {load['tokens_per_second']:.0f}"
    if stock is None:
        return text
    return f"{text} ({stock['tokens_per_second'] / load['tokens_per_second']:.2f})"
