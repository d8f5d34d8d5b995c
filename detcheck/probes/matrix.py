"""Cells of the invariance matrix as lines of a table, and the batch sizes of a class in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from detcheck.probes.ops import Cell


@dataclass(frozen=True, slots=True)
class Line:
    """One op, shape, dtype and kernels setting, with its cells by relation."""

    op: str
    shape: str
    dtype: str
    kernels: str
    cells: dict[str, Cell]

    @property
    def max_ulp(self) -> int:
        """The largest difference under any relation."""
        return max(cell.max_ulp for cell in self.cells.values())

    @property
    def relative_time(self) -> float | None:
        """Time relative to stock kernels, the same for all its cells; None without stock."""
        return next(iter(self.cells.values())).relative_time

    @property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """Groups of batch sizes that give the same bits; empty without `batch-size`."""
        cell = self.cells.get("batch-size")
        return cell.classes if cell is not None else ()


def lines(cells: Iterable[Cell]) -> list[Line]:
    """One line for each op, shape, dtype and kernels setting, in the order of the cells."""
    grouped: dict[tuple[str, str, str, str], dict[str, Cell]] = {}
    for cell in cells:
        key = (cell.op, cell.shape, cell.dtype, cell.kernels)
        grouped.setdefault(key, {})[cell.relation] = cell
    return [Line(*key, by_relation) for key, by_relation in grouped.items()]


def class_words(classes: Sequence[Sequence[int]]) -> str:
    """`1 | 2–3 | 4–129`: a dash joins sizes that are adjacent among those tried."""
    tried = sorted(size for group in classes for size in group)
    return " | ".join(_runs(sorted(group), tried) for group in classes)


def _runs(sizes: list[int], tried: list[int]) -> str:
    """Joins sizes by a dash if no other tried size lies between them."""
    runs: list[list[int]] = []
    for size in sizes:
        if runs and tried.index(size) == tried.index(runs[-1][-1]) + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
