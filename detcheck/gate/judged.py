"""The subject of a verdict: the model, the question, the comparisons and the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from detcheck.analysis.evidence import percent_of
from detcheck.analysis.results import Group
from detcheck.analysis.statistics import zero_upper_bound
from detcheck.gate.given import GateInput
from detcheck.gate.identity import models_of, target_of
from detcheck.text import count

NOT_RECORDED = "not recorded"
MOST_SEEDS = 8
"""Seeds that are named."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The subject of a verdict, as every form of it shows it. None: the run does not record it."""

    run: str
    """Path of the run directory."""
    run_id: str
    finished: str | None
    """UTC, ISO 8601; None if the run never finished."""
    age_s: float
    """Seconds since the run finished, or since it was started if it never finished."""
    model: str | None
    revision: str | None
    weights_digest: str | None
    engine: str
    target: str
    """Where the answers were computed: a device of this machine, or the URLs of servers."""
    dtype: str | None
    """Number type that the weights were really loaded in."""
    decoding: Mapping[str, str]
    """Decoding options that were really used and differ from the experiment's."""
    kernels: tuple[str, ...]
    levels: tuple[str, ...]
    """What was held equal, by kernels setting."""
    prompts: int
    groups: int
    """Prompts times kernels settings that were judged."""
    completions: int
    """Completions asked for of each prompt under each kernels setting, to each seed, at each
    place."""
    places: tuple[str, ...]
    """Names of the places that computed answers, such as `endpoint 2`; one empty name if there is
    only one."""
    returned: int
    """Completions that came back, over all judged groups."""
    temperature: float
    seeds: tuple[int, ...]
    """Seeds of the wanted samples; without effect at temperature 0."""
    choices: int
    """Completions of each request; above temperature 0 each is a wanted sample."""
    batch_sizes: tuple[int, ...]
    """Batch sizes that were asked for."""
    observed_batches: tuple[int, ...]
    """Most requests that were observed together at each of these sizes; of several groups, those
    of the group that has fewest."""
    observed: str
    """The batches that were observed, and how."""
    max_new_tokens: int
    comparisons: int
    """Comparisons under a batch larger than one, over all judged groups."""
    fewest_comparisons: int
    """Those of the group that has fewest."""
    differing: int
    """Completions that differ from the reference, over all judged groups."""
    bound: float | None
    """95 % upper bound on the rate of differing answers of the group with the fewest comparisons;
    None if any completion differed."""
    unseen_tokens: int
    """Tokens that a server counted and never showed, over all judged groups."""
    control: str | None
    """The kernels that were the control, or `itself`, and whether nothing of it moved; None if no
    control was measured."""
    control_run: str | None
    """Run id of the control, if it is another run."""
    baseline: str | None
    """Run id of the baseline; None if there is none."""
    held: int
    """Judged groups whose prompt and kernels the baseline has."""

    def facts(self) -> Iterator[tuple[str, str]]:
        """(name, text) pairs, in the order in which they are shown."""
        revision = self.revision or NOT_RECORDED
        weights = self.weights_digest or NOT_RECORDED
        yield "model", f"{self.model or NOT_RECORDED}, revision {revision}, weights {weights}"
        dtype = self.dtype or NOT_RECORDED
        yield "computed by", f"engine {self.engine} on {self.target}, dtype {dtype}"
        yield "kernels", f"{', '.join(self.kernels)}, judged by {', '.join(self.levels)}"
        yield "asked", self._asked()
        if self.decoding:
            options = ", ".join(f"{name} {value}" for name, value in self.decoding.items())
            yield "decoding", options
        seen = ", ".join(map(str, self.observed_batches))
        yield "observed", f"{self.observed} (sizes {seen})"
        yield "compared", self._compared()
        if self.unseen_tokens:
            yield "not judged", f"{count(self.unseen_tokens, 'token')} that were never shown"
        finished = f"finished {self.finished}" if self.finished else "never finished"
        age = duration_in_words(timedelta(seconds=self.age_s))
        yield "run", f"{self.run_id}, {finished}, {age} ago"
        of_run = f" of run {self.control_run}" if self.control and self.control_run else ""
        yield "control", f"{self.control or 'none was measured'}{of_run}"
        held = f", which has {self.held} of {count(self.groups, 'judged prompt')}"
        yield "baseline", f"{self.baseline}{held}" if self.baseline else "none"

    def _asked(self) -> str:
        completions = count(self.completions, "completion")
        tokens = count(self.max_new_tokens, "token")
        sizes = ", ".join(map(str, self.batch_sizes))
        each = f" at each of {len(self.places)} places" if len(self.places) > 1 else " each"
        asked = f"{count(self.prompts, 'prompt')}, {completions}{each} of at most {tokens}"
        if self.temperature > 0:
            seeds = ", ".join(map(str, self.seeds[:MOST_SEEDS]))
            more = " …" if len(self.seeds) > MOST_SEEDS else ""
            asked += f", temperature {self.temperature:g} with seed {seeds}{more}"
        if self.choices > 1:
            asked += f"{' and' if self.temperature > 0 else ','} {self.choices} choices"
        return f"{asked}, batch sizes {sizes}"

    def _compared(self) -> str:
        made = f"{count(self.comparisons, 'comparison')} under a batch larger than one"
        if self.fewest_comparisons < self.comparisons:
            made += f", at least {self.fewest_comparisons:,} a prompt"
        if not self.comparisons:
            return made
        if self.bound is None:
            made += "; different from the reference: "
            return f"{made}{self.differing:,} of {count(self.returned, 'completion')}"
        return f"{made}, none differs: fewer than {percent_of(self.bound)} would (95 % bound)"


def judged_of(given: GateInput) -> Judged:
    """The subject of a gate, from the run and the options."""
    run, experiment, baseline = given.analysis.run, given.analysis.run.experiment, given.baseline
    comparisons = [group.comparisons for group in given.groups]
    differing = sum(given.counts(group).differing for group in given.groups)
    kernels = tuple(dict.fromkeys(group.kernels for group in given.groups))
    controls = [
        ("itself" if control is group else control.kernels)
        + ("" if control.alive else _not_alive(control))
        for group in given.groups
        if (control := given.control(group)) is not None
    ]
    models = models_of(run)
    return Judged(
        run=str(run.path),
        run_id=run.run_id,
        finished=run.finished,
        age_s=given.age.total_seconds(),
        model=models[0] if models else None,
        revision=run.model.revision,
        weights_digest=run.model.weights_digest,
        engine=run.target.engine,
        target=target_of(run),
        dtype=run.model.dtype,
        decoding=run.model.decoding,
        kernels=kernels,
        levels=tuple(dict.fromkeys(given.options.level_of(name) for name in kernels)),
        prompts=len({group.prompt_index for group in given.groups}),
        groups=len(given.groups),
        completions=experiment.completions,
        places=run.target.placements,
        returned=sum(group.completions for group in given.groups),
        temperature=experiment.temperature,
        seeds=experiment.seeds,
        choices=run.traits.choices,
        batch_sizes=experiment.batch_sizes,
        observed_batches=tuple(_observed(given, size) for size in experiment.batch_sizes),
        observed="; ".join(dict.fromkeys(group.evidence.sentence for group in given.groups)),
        max_new_tokens=experiment.max_new_tokens,
        comparisons=sum(comparisons),
        fewest_comparisons=min(comparisons, default=0),
        differing=differing,
        bound=None if differing else zero_upper_bound(min(comparisons, default=0)),
        unseen_tokens=sum(given.unseen_tokens(group) for group in given.groups),
        control=", ".join(dict.fromkeys(controls)) or None,
        control_run=None if given.control_run is None else given.control_run.run.run_id,
        baseline=None if baseline is None else baseline.run_id,
        held=given.num_held(),
    )


def _not_alive(control: Group) -> str:
    return " (nothing moved)" if control.completions >= control.asked else " (not complete)"


def _observed(given: GateInput, batch_size: int) -> int:
    """Most requests observed together in the group that has fewest at a batch size that was asked
    for; 0 if batches were not observed."""
    rows = [row for group in given.groups for row in group.by_batch_size]
    return min((row.observed_rows_max for row in rows if row.batch_size == batch_size), default=0)


def duration_in_words(duration: timedelta) -> str:
    """`12 days`, `3 hours`, `5 minutes`, or `less than a minute`; rounded down."""
    seconds = int(duration.total_seconds())
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return count(seconds // size, unit)
    return "less than a minute"
