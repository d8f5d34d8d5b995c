"""Runs with chosen answers, written as the runner writes them, for looking at and for testing."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

from asking import conditions_of

from detcheck.analysis import Analysis
from detcheck.completion import Completion, TopTwo
from detcheck.evidence import KernelsProof, ObservedBatch
from detcheck.experiment import Experiment
from detcheck.kernels.settings import STOCK
from detcheck.report.figure_style import Drawing
from detcheck.report.figures import draw_all
from detcheck.rundir import Run, RunWriter, load
from detcheck.targets import InProcess, Target
from detcheck.traffic import Trial, plan_trials

ENVIRONMENT = {
    "python": "3.11.2",
    "platform": "Linux x86_64",
    "torch": "2.13.0+cpu",
    "cpu": {"model": "AMD EPYC", "cores": 2, "flags": ["avx512_bf16", "amx"]},
    "gpu": None,
}

LIGHTHOUSE = (
    "Once upon a time, on a rocky cliff at the edge of a small coastal town, there lived a keeper "
    "named Elias who had tended the lamp for forty years and knew every ship by its lights.",
    "Once upon a time, on a rocky cliff at the edge of a small , coastal town, there stood a tall "
    "white lighthouse whose keeper had not spoken to anyone since the storm of the last winter.",
    "Once upon a time, on a rocky cliff at the edge of a small coastal town, there lived an old "
    "man named Jack who loved the sea more than the company of people.",
    "Once upon a time, on a rocky cliff at the edge of a small coastal village, the lamp had been "
    "dark for many years, until a young woman came with a letter and a key.",
    "Once upon a time, on a rocky cliff at the edge of a small coastal town, there lived a keeper "
    "named Elias who had tended the lamp for thirty years, as his father had before him.",
    "Once upon a time, on a rocky cliff at the edge of a small , coastal town, there stood a tall "
    "white tower, and in it burned a lamp.",
    "Once upon a time, on a rocky cliff at the edge of a small coastal town, there lived a keeper "
    "named Silas who counted the waves at night.",
    "Once upon a time, on a rocky cliff at the edge of a lonely island, a lighthouse stood.",
)

RARE_WORDS = ("silver", "old", "quiet", "distant", "broken", "salt", "winter", "northern", "lost")
_DRAWN: dict[int, dict[int, list[Drawing]]] = {}


def drawn(analysis: Analysis) -> dict[int, list[Drawing]]:
    """The figures of one of the shared analyses, drawn once: drawing is what takes time."""
    if id(analysis) not in _DRAWN:
        _DRAWN[id(analysis)] = draw_all(analysis)
    return _DRAWN[id(analysis)]


class Script:
    """Answers to one prompt, the first being the reference, the others by falling weight."""

    def __init__(self, answers: Sequence[str], gap: float = 0.004, *, tokens: bool = True):
        self.answers = list(dict.fromkeys(answers))
        self.gap = gap
        self.tokens = tokens
        self._ids: dict[str, int] = {}
        self._pieces = [re.findall(r"\s*\S+|\s+$", answer) or [answer] for answer in self.answers]

    def completion(self, index: int, rows: int, rng: random.Random) -> Completion:
        """The completion that gives answer `index`, computed in a batch of `rows`."""
        text = self.answers[index]
        observed = ObservedBatch(rows, rows, float(rows), rows + 12, len(self._pieces[index]))
        if not self.tokens:
            return Completion(text, "stop", observed_batch=observed)
        pieces = self._pieces[index]
        runners, gaps = self._top_two(index, rng)
        return Completion(
            text=text,
            finish_reason="length",
            token_ids=tuple(map(self._id, pieces)),
            token_ends=tuple(accumulate(map(len, pieces))),
            top_two=TopTwo(tuple(runners), tuple(gaps), tuple(-0.1 for _ in gaps)),
            observed_batch=observed,
        )

    def choose(self, rng: random.Random) -> int:
        """An answer drawn by falling weight: few are common, many are rare."""
        weights = [1 / (rank + 1) ** 1.3 for rank in range(len(self.answers))]
        return rng.choices(range(len(self.answers)), weights)[0]

    def _id(self, piece: str) -> int:
        return self._ids.setdefault(piece, len(self._ids))

    def _top_two(self, index: int, rng: random.Random) -> tuple[list[int], list[float]]:
        runners, gaps = [], []
        rivals = self._rivals(index)
        for position, piece in enumerate(self._pieces[index]):
            rival = rivals[position]
            runners.append(self._id(piece) + 100_000 if rival is None else self._id(rival))
            gaps.append(2 + 0.02 * rng.random() if rival is None else self._rival_gap(position))
        return runners, gaps

    @cache  # noqa: B019 (scripts live as long as the tests)
    def _rivals(self, index: int) -> list[str | None]:
        """The next word of another answer that agrees up to each position; None without one."""
        rivals: list[str | None] = []
        others = self._pieces
        for position, piece in enumerate(self._pieces[index]):
            others = [other for other in others if len(other) > position]
            parted = (other[position] for other in others if other[position] != piece)
            rivals.append(next(parted, None))
            others = [other for other in others if other[position] == piece]
        return rivals

    def _rival_gap(self, position: int) -> float:
        return 0.0 if position % 3 == 0 else self.gap * (1 + position % 5)


def write_run(
    path: Path, scripts: Sequence[Script], experiment: Experiment, target: Target | None = None
) -> Run:
    """Write a run in which stock kernels draw answers at batch sizes above 1, others do not."""
    target = target or InProcess()
    experiment = target.settle(experiment)
    writer = RunWriter.create(
        path,
        experiment,
        target,
        ENVIRONMENT,
        run_id=path.name,
        version="0.1.0",
        created="2026-01-02T03:04Z",
    )
    for index, condition in enumerate(conditions_of(experiment, target)):
        script = scripts[condition.prompt_index]
        for trial in plan_trials(experiment, condition):
            completions = _answer(trial, script)
            tokens = 100 * len(trial.requests)
            slower = 1.0 if condition.kernels == STOCK else 1.12 + 0.01 * condition.batch_size
            writer.append_trial(
                index,
                trial.index,
                completions,
                elapsed_s=tokens * slower / (40 + 12 * condition.batch_size),
                generated_tokens=tokens,
            )
        writer.set_status(index, "done")
    for kernels in experiment.kernels:
        invariant = kernels != STOCK
        overrides = {"aten::mm": 48_210, "attention": 12_000} if invariant else {}
        writer.set_proof(KernelsProof(kernels, overrides, (), "passed" if invariant else None))
    writer.finish([], "2026-01-02T03:09Z")
    writer.close()
    return load(path)


def _answer(trial: Trial, script: Script) -> list[tuple[int, Completion]]:
    condition = trial.condition
    composition = 0 if trial.index == 1 else trial.index
    rng = random.Random(f"{condition.condition_id}/{composition}")
    varied = condition.kernels == STOCK and condition.batch_size > 1
    return [
        (
            position,
            script.completion(
                ((script.choose(rng) if varied else 0) + condition.seed) % len(script.answers),
                condition.batch_size,
                rng if condition.kernels == STOCK else random.Random(0),
            ),
        )
        for position, request in enumerate(trial.requests)
        if request.is_probe
    ]


def many_answers(number: int) -> list[str]:
    """`number` answers that leave one text at different words."""
    base = LIGHTHOUSE[0].split()
    rng = random.Random(number)
    answers = [" ".join(base)]
    while len(answers) < number:
        words = rng.choice(answers[: 1 + len(answers) // 2]).split()
        cut = rng.randint(len(words) // 2, len(words) - 1)
        answers.append(" ".join([*words[:cut], rng.choice(RARE_WORDS), *words[cut + 1 :]]))
        answers = list(dict.fromkeys(answers))
    return answers
