"""Measures sampler against trainer: samples (or takes rollouts), scores, and splits the gap."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from detcheck import __version__, models
from detcheck.analysis.mismatch.headline import headline_of
from detcheck.analysis.mismatch.results import PREFILL_LAYOUT, MismatchReport, NamedFault
from detcheck.analysis.mismatch.rounding import rounding_of
from detcheck.engines import Connection, Engine, open_engine
from detcheck.engines.base import IdentifiesModel
from detcheck.engines.in_process import InProcessEngine, pad_token_id
from detcheck.engines.prompts import encode_prompt
from detcheck.errors import MeasurementError, ModelError, UsageError
from detcheck.experiment import Experiment
from detcheck.kernels.settings import AS_SERVED, STOCK
from detcheck.mismatch.chain import Chain
from detcheck.mismatch.options import EMBEDDED, SAME, TrainerOptions
from detcheck.mismatch.rollouts import Rollout
from detcheck.mismatch.sampling import sample
from detcheck.mismatch.semantics import OTHER_PROMPT, best_other_prompt, named_fault
from detcheck.mismatch.slices import slices_of, tokens_of
from detcheck.models import LoadedModel
from detcheck.models.embedded import EMBEDDED_NAME
from detcheck.targets import Target

Say = Callable[[str], None]
"""Called with a phrase that says what is computed now."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement: its report, and the rollouts of each kernels setting."""

    report: MismatchReport
    rollouts: dict[str, tuple[Rollout, ...]]


def measure_mismatch(
    experiment: Experiment,
    target: Target,
    options: TrainerOptions | None = None,
    *,
    rollouts: Sequence[Rollout] = (),
    source: str | None = None,
    first_seed: int = 0,
    connection: Connection | None = None,
    say: Say = lambda phrase: None,
) -> Measured:
    """Compare a sampler's log-probabilities with a trainer's, link by link.

    `experiment` gives the prompts, which take turns, the completions in all, the kernels, the
    sampling and, as its largest batch size, the sampler's batch; request i has the seed
    `first_seed` + i. With `rollouts` nothing is
    sampled: `experiment` then gives only the kernels under which they are recomputed, and `source`
    their name. Raises UsageError or ModelError if the model or a server cannot be used, and
    MeasurementError if the sampler gives no token ids or no tokens at all.
    """
    options = options or TrainerOptions()
    if rollouts:
        given = {kernels: tuple(rollouts) for kernels in experiment.kernels}
        say("loading the model")
        loaded = _load(target, options, getattr(target, "model", None))
    else:
        given, loaded = _sampled(experiment, target, options, first_seed, connection, say)
    return score(
        loaded,
        given,
        options,
        source=source or target.engine,
        processed=_processed(options, from_file=bool(rollouts)),
        say=say,
    )


def score(
    loaded: LoadedModel,
    rollouts: dict[str, tuple[Rollout, ...]],
    options: TrainerOptions,
    *,
    source: str,
    processed: bool,
    say: Say = lambda phrase: None,
) -> Measured:
    """Score `rollouts`, given by the sampler's kernels, with a trainer of model `loaded`.

    Under `as-served` kernels the sampler's steps are recomputed with stock kernels. Raises
    UsageError if the rollouts are not of this model, and MeasurementError if a setting has no
    tokens.
    """
    if any(not any(each.places for each in own) for own in rollouts.values()):
        raise MeasurementError("The sampler gave no tokens: ask for longer completions.")
    for own in rollouts.values():
        _check_fit(loaded, own)
    dtypes = _dtypes(loaded, options)
    chains = [
        Chain(STOCK if kernels == AS_SERVED else kernels, own, processed)
        for kernels, own in rollouts.items()
    ]
    for chain in chains:
        say(f"{chain.kernels}: the sampler's steps again")
        chain.compute_sampler(loaded.model)
    faults = [fault for chain in chains for fault in _faults(chain, loaded)]
    for dtype in dtypes:
        model = _in_dtype(loaded, dtype)
        for chain in chains:
            kernels = chain.kernels if options.trainer_kernels == SAME else options.trainer_kernels
            say(f"{chain.kernels}: the trainer in {dtype}")
            chain.compute_trainer(
                model, kernels, options.trainer_layout, dtype, pad_token_id(loaded)
            )
    return Measured(_report(loaded, chains, options, faults, source, processed), rollouts)


def _check_fit(loaded: LoadedModel, rollouts: Sequence[Rollout]) -> None:
    """Raise UsageError if a token or the length of a rollout is none of the model's."""
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    largest = max(token for rollout in rollouts for token in rollout.token_ids)
    if largest >= vocabulary:
        raise UsageError(
            f"A rollout has the token id {largest}, and {loaded.name} has ids below {vocabulary}: "
            "name the model that sampled the rollouts."
        )
    longest = max(len(rollout.token_ids) for rollout in rollouts)
    if loaded.context_length is not None and longest > loaded.context_length:
        raise UsageError(
            f"A rollout has {longest} tokens, more than the {loaded.context_length} of "
            f"{loaded.name}'s context: leave it out."
        )


def _report(
    loaded: LoadedModel,
    chains: Sequence[Chain],
    options: TrainerOptions,
    faults: Sequence[NamedFault],
    source: str,
    processed: bool,
) -> MismatchReport:
    own = _name(loaded.dtype)
    wanted = _wanted(loaded, options)
    rows = tuple(
        row
        for chain in chains
        for row in chain.rows(own)
        if row.trainer_dtype in (None, *wanted) or row.link == PREFILL_LAYOUT
    )
    rounding = rounding_of(chains[0].recorded)
    return MismatchReport(
        rows=rows,
        headline=headline_of(rows, faults),
        detcheck=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=loaded.name,
        source=source,
        logprobs="processed" if processed else "raw",
        temperature=chains[0].rollouts[0].temperature,
        sampler_dtype=own,
        trainer_kernels=options.trainer_kernels,
        rounding=None if rounding is None else rounding.sentence,
        rounding_unit=0.0 if rounding is None else rounding.unit,
        unproven={name: why for chain in chains for name, why in chain.unproven.items()},
        faults=tuple(faults),
        missing=tuple(missing for chain in chains for missing in chain.missing),
        slices=tuple(one for chain in chains for one in slices_of(chain, wanted)),
        tokens=tuple(one for chain in chains if (one := tokens_of(chain, wanted)) is not None),
    )


def _faults(chain: Chain, loaded: LoadedModel) -> Iterator[NamedFault]:
    """The meaning that explains the record, if the stated one does not."""
    if chain.decoded is None:
        return
    recorded = chain.recorded
    fault = named_fault(chain.kernels, recorded, chain.meanings, None)
    if fault is None and _mean_gap(chain) > OTHER_PROMPT:
        with torch.no_grad():
            other = best_other_prompt(
                loaded.model, loaded.tokenizer, chain.rollouts, chain.processed
            )
        fault = named_fault(chain.kernels, recorded, chain.meanings, other)
    if fault is not None:
        yield fault


def _mean_gap(chain: Chain) -> float:
    gaps = [abs(a - b) for a, b in zip(chain.recorded, chain.meanings.stated, strict=True)]
    return sum(float(gap.sum()) for gap in gaps) / sum(len(gap) for gap in gaps)


def _sampled(
    experiment: Experiment,
    target: Target,
    options: TrainerOptions,
    first_seed: int,
    connection: Connection | None,
    say: Say,
) -> tuple[dict[str, tuple[Rollout, ...]], LoadedModel]:
    """The rollouts under each kernels setting, and the model that scores them."""
    _check_one_place(target)
    experiment = target.settle(experiment)
    say("loading the sampler")
    engine = open_engine(experiment, target, connection)
    try:
        if isinstance(engine, InProcessEngine) and options.trainer_model is None:
            loaded = engine.loaded
        else:
            loaded = _load(target, options, _sampler_name(engine, target))
        template = getattr(target, "chat_template", True)
        chats = {
            text: item.messages
            for text, item in zip(experiment.prompts, experiment.items, strict=False)
        }

        def encode(prompt: str) -> tuple[int, ...]:
            return encode_prompt(
                loaded.tokenizer, prompt, chat_template=template, chat=chats.get(prompt, ())
            )

        found = {}
        for kernels in experiment.kernels:
            say(f"{kernels}: sampling")
            found[kernels] = sample(engine, experiment, kernels, first_seed, encode)
    finally:
        engine.close()
    return found, loaded


def _check_one_place(target: Target) -> None:
    """Raise UsageError unless each request is answered once, by one sampler as it is."""
    if target.traits.choices > 1:
        raise UsageError("Each rollout is one request with a seed: leave `choices` out.")
    if target.placements != ("",):
        raise UsageError(
            "A mismatch has one sampler, as it is: give one of `endpoints` or `tensor_parallel`, "
            "and leave `prefix_cache` out."
        )


def _sampler_name(engine: Engine, target: Target) -> str | None:
    """The sampler's model; None for the embedded one."""
    name: str | None = getattr(target, "model", None)
    if name is None and not target.traits.computes_here and isinstance(engine, IdentifiesModel):
        return engine.model_identity().name
    return name


def _load(target: Target, options: TrainerOptions, sampler_name: str | None) -> LoadedModel:
    """The trainer's model in the sampler's dtype."""
    name = options.trainer_model or sampler_name
    try:
        return _loaded(target, None if name == EMBEDDED else name)
    except ModelError as error:
        if target.traits.computes_here or options.trainer_model is not None:
            raise
        raise ModelError(
            f"{error} A server samples: give its weights here as `trainer_model`."
        ) from error


def _loaded(target: Target, name: str | None) -> LoadedModel:
    return models.load(
        name,
        revision=getattr(target, "revision", None),
        dtype=getattr(target, "dtype", "auto"),
        device=getattr(target, "device", "auto"),
        trust_remote_code=getattr(target, "trust_remote_code", False),
    )


def _processed(options: TrainerOptions, *, from_file: bool) -> bool:
    return options.logprobs == "processed" or (options.logprobs == "auto" and from_file)


def _wanted(loaded: LoadedModel, options: TrainerOptions) -> tuple[str, ...]:
    """The trainer's dtypes that were asked for."""
    own = _name(loaded.dtype)
    return tuple(dict.fromkeys(own if name == SAME else name for name in options.trainer_dtype))


def _dtypes(loaded: LoadedModel, options: TrainerOptions) -> tuple[str, ...]:
    """The dtypes to compute in: the sampler's first, since the layout is compared in it."""
    return tuple(dict.fromkeys((_name(loaded.dtype), *_wanted(loaded, options))))


def _in_dtype(loaded: LoadedModel, dtype: str) -> Any:
    """The model in another dtype, from its own files, of the same commit, if it has any."""
    if dtype == _name(loaded.dtype):
        return loaded.model
    if loaded.source is None:
        return copy.deepcopy(loaded.model).to(getattr(torch, dtype))
    name = None if loaded.name == EMBEDDED_NAME else loaded.name
    return models.load(
        name,
        revision=loaded.commit,
        dtype=dtype,
        device=loaded.device.type,
        trust_remote_code=type(loaded.model).__module__.startswith("transformers_modules"),
    ).model


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
