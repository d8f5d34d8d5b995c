"""Baselines: the accepted answers of an earlier run, in memory or in a small file to commit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from detcheck.analysis.evidence import (
    CONTROL_ALIVE,
    ENOUGH_COMPARISONS,
    LOAD_VARIED,
    Finding,
    lacking,
)
from detcheck.analysis.results import Analysis, Group, SeedSplit
from detcheck.completion import fingerprint_text
from detcheck.errors import UsageError
from detcheck.gate.identity import dtype_of, models_of
from detcheck.rundir import Run, StoredVariant
from detcheck.text import HIDDEN

FORMAT = 1
PREVIEW = 2000
"""Characters of an answer that a file keeps, to show a difference in words."""
Key = tuple[str, str, int | None]
"""Prompt, kernels, and the seed of a wanted sample."""
NOT_NEEDED = (LOAD_VARIED, ENOUGH_COMPARISONS, CONTROL_ALIVE)
"""Lacks that a baseline may have: an answer that one load gave was given all the same."""


class AcceptedAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer that a baseline accepts."""

    fingerprint: str
    text_fingerprint: str
    """Hash of the text alone, for a server that gives token ids only now and then."""
    completions: int
    """Completions that gave it in the run it was accepted from."""
    characters: int
    """Length of its text."""
    preview: str
    """Its text, or the first `PREVIEW` characters of it."""

    @property
    def whole(self) -> bool:
        """True if the preview is the whole text."""
        return len(self.preview) == self.characters


class AcceptedPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The accepted answers to one prompt under one kernels setting, and to one seed if sampled."""

    prompt: str
    kernels: str
    seed: int | None = None
    """Seed of the wanted sample; None at temperature 0, where a seed changes nothing."""
    token_ids_digest: str | None = None
    """Tagged hash of the prompt's token ids, as they were sent; None if it is not known."""
    answers: Annotated[tuple[AcceptedAnswer, ...], msgspec.Meta(min_length=1)]
    """The reference of the run first, then the most common first."""

    @property
    def key(self) -> Key:
        """(prompt, kernels, seed), which no other entry of the baseline has."""
        return self.prompt, self.kernels, self.seed

    def accepts(self, variant: StoredVariant) -> bool:
        """True if `variant` is one of the accepted answers, by tokens if both have them."""
        if any(answer.fingerprint == variant.fingerprint for answer in self.answers):
            return True
        tagged = {answer.fingerprint.partition(":")[0] for answer in self.answers}
        if variant.fingerprint.partition(":")[0] in tagged:
            return False
        text = fingerprint_text(variant.text)
        return any(answer.text_fingerprint == text for answer in self.answers)


class Baseline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The accepted answers, with the question and the model."""

    detcheck_baseline: int = FORMAT
    """Version of the format."""
    run_id: str
    """The run that the answers were last accepted from."""
    finished: str | None
    """When that run finished; UTC, ISO 8601."""
    model: str | None
    """None if the run does not record it."""
    revision: str | None = None
    """Commit of a model on the hub; None if it is not known."""
    weights_digest: str | None = None
    """Tagged hash of all weight files; None if it is not known."""
    config_digest: str | None = None
    """Tagged hash of the model's configs and of code that it brings along; None if not known."""
    tokenizer_digest: str | None = None
    """Tagged hash of the tokenizer's files; None if it is not known."""
    chat_template_digest: str | None = None
    """Tagged hash of the chat template's text; None if it is not known."""
    dtype: str | None
    """Number type of the weights, as loaded, else as asked for; None if it is not known."""
    max_new_tokens: int
    temperature: float
    filters: dict[str, int | float] = {}
    """`top_k`, `top_p` and `min_p` of the sampling, as far as they were in use."""
    chat_template: bool
    engine: str
    machine: dict[str, Any]
    """Settings of the machine that can change an answer."""
    prompts: Annotated[tuple[AcceptedPrompt, ...], msgspec.Meta(min_length=1)]

    def by_key(self) -> dict[Key, AcceptedPrompt]:
        """Its entries by (prompt, kernels, seed)."""
        return {entry.key: entry for entry in self.prompts}


def baseline_of(analysis: Analysis, kernels: Sequence[str], preview: int | None = None) -> Baseline:
    """The answers of a run as a baseline; `preview` caps the characters that are kept of each.

    Raises UsageError if the run lacks one of `kernels`, or is no evidence of its answers.
    """
    check_source(analysis, kernels, "The baseline", "no evidence to hold a run against")
    groups = [group for group in analysis.groups if group.kernels in kernels]
    run, experiment = analysis.run, analysis.run.experiment
    models = models_of(run)
    return Baseline(
        run_id=run.run_id,
        finished=run.finished,
        model=models[0] if models else None,
        revision=run.model.revision,
        weights_digest=run.model.weights_digest,
        config_digest=run.model.config_digest,
        tokenizer_digest=run.model.tokenizer_digest,
        chat_template_digest=run.model.chat_template_digest,
        dtype=dtype_of(run),
        max_new_tokens=experiment.max_new_tokens,
        temperature=experiment.temperature,
        filters=dict(experiment.filters),
        chat_template=bool(run.setting("chat_template")),
        engine=run.target.engine,
        machine=machine_of(run),
        prompts=tuple(
            _entry(run, group, split, preview) for group in groups for split in group.by_seed
        ),
    )


def check_no_choices(run: Run) -> None:
    """Raise UsageError if the samples of `run` are the choices of one request."""
    if run.by_choice:
        raise UsageError(
            f"A baseline holds one answer to each seed, and {run.path} has {run.traits.choices} "
            "choices of one: measure it with several `seeds`, and without `choices`."
        )


def check_source(analysis: Analysis, kernels: Sequence[str], name: str, complaint: str) -> None:
    """Raise UsageError if a run cannot be made a baseline of its answers under `kernels`.

    Messages call the run `name`. `complaint` follows `is` if the run is no evidence.
    """
    for asked in kernels:
        if asked not in analysis.run.experiment.kernels:
            raise UsageError(
                f"{name} has no {asked} kernels, only "
                f"{', '.join(analysis.run.experiment.kernels)}: choose others by `kernels`."
            )
    check_no_choices(analysis.run)
    groups = [group for group in analysis.groups if group.kernels in kernels]
    lacks: Sequence[Finding] = lacking(analysis, groups)
    for lack in lacks:
        if lack.rule not in NOT_NEEDED:
            raise UsageError(f"{name} is {complaint}: {lack.sentence}")


def machine_of(run: Run) -> dict[str, Any]:
    """The machine class: what `environment.differences` needs, without measured quantities."""
    environment = run.environment
    machine = dict(environment.get("machine") or {})
    found = {
        "device": environment.get("device"),
        "machine": {key: machine[key] for key in ("cpu", "isa") if key in machine},
        "gpu": {"name": (environment.get("gpu") or {}).get("name")},
        "packages": {
            name: version
            for name, version in dict(environment.get("packages") or {}).items()
            if name != "numpy"
        },
    }
    return {key: value for key, value in found.items() if value and any(_values(value))}


def _values(value: Any) -> Sequence[Any]:
    return tuple(value.values()) if isinstance(value, Mapping) else (value,)


def prompt_digest(run: Run, prompt_index: int) -> str | None:
    """Tagged hash of the token ids of a prompt, as they were sent; None if it is not known."""
    digests = run.model.prompt_digests
    return digests[prompt_index] if prompt_index < len(digests) else None


def key_of(run: Run, group: Group, split: SeedSplit) -> Key:
    """The key of the baseline entry that holds one seed's answers of a group."""
    return group.prompt, group.kernels, split.seed if run.experiment.temperature > 0 else None


def _entry(run: Run, group: Group, split: SeedSplit, preview: int | None) -> AcceptedPrompt:
    ordered = sorted(split.variants, key=lambda counted: not counted.is_reference)
    answers = tuple(
        AcceptedAnswer(
            fingerprint=counted.variant.fingerprint,
            text_fingerprint=fingerprint_text(counted.variant.text),
            completions=counted.count,
            characters=len(counted.variant.text),
            preview=counted.variant.text[:preview],
        )
        for counted in ordered
    )
    return AcceptedPrompt(
        prompt=group.prompt,
        kernels=group.kernels,
        seed=key_of(run, group, split)[2],
        token_ids_digest=prompt_digest(run, group.prompt_index),
        answers=answers,
    )


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file. Raises UsageError if it cannot be read or is none."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"There is no baseline {path}: check the path.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON ({error}), so it is no baseline.") from error
    version = document.get("detcheck_baseline") if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        raise UsageError(
            f"{path} is no baseline: give a file that `detcheck baseline update` wrote, or a run."
        )
    if version > FORMAT:
        raise UsageError(
            f"{path} has format {version}, newer than this detcheck reads ({FORMAT}): upgrade "
            "detcheck."
        )
    try:
        baseline = msgspec.convert(document, Baseline, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is damaged: {error}. Write it again.") from error
    if len(baseline.by_key()) < len(baseline.prompts):
        raise UsageError(f"{path} is damaged: it has a prompt twice. Write it again.")
    return baseline


def baseline_text(baseline: Baseline) -> str:
    """The file of a baseline: JSON, one line a value, harmless characters only."""
    plain = json.dumps(msgspec.to_builtins(baseline), indent=1, ensure_ascii=False)
    return _HIDDEN_IN_JSON.sub(lambda match: _escaped(match.group()), plain) + "\n"


_HIDDEN_IN_JSON = re.compile(rf"(?!\n)(?:{HIDDEN.pattern})")
"""Hidden characters but for line ends, which only stand between values: JSON escapes others."""


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline to `path`. Raises UsageError if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(baseline_text(baseline), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}).") from error
