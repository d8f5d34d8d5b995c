"""Continuous batching as transformers serves it: requests join and leave between forward passes.

The generation loop is transformers' own: its scheduler, paged cache and model runner. It is stepped
from here instead of from its background thread. So requests arrive at known steps, an error is
raised at the step that caused it, and each step's batch is observed before its forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from detcheck.engines.base import OnTokens
from detcheck.engines.graphs import (
    GRAPH_KEYS,
    GRAPH_QUERIES,
    LastLogits,
    require_graphs,
    run_step,
)
from detcheck.engines.in_process import InProcessEngine, pad_token_id, token_rows
from detcheck.engines.partial import PartialCompletion
from detcheck.engines.passes import PackedPass
from detcheck.engines.warm_prefixes import (
    FILLING_TOKENS,
    PrefixCount,
    cached_part,
    check_found,
    check_prompts,
    check_sharing,
)
from detcheck.errors import MeasurementError
from detcheck.evidence import FORWARD_PASSES, LoadEvidence
from detcheck.experiment import Experiment
from detcheck.models import LoadedModel
from detcheck.targets import InProcess
from detcheck.targets.prefix_cache import AS_IS, WARM, cache_state
from detcheck.traffic import FILLER_PROMPTS, PlannedRequest, Trial

PAGE_TOKENS = 32
"""Tokens of one request that share a page of the cache."""
SPARE_PAGES = 8
PAGED_KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers that transformers' continuous batching keeps in pages."""
PREFILL_BUDGET_TOKENS = 8192
"""Most prompt tokens of one step. Further requests wait for the next step: splitting a prompt over
steps would change `chunking` as well as the batch."""


class ContinuousEngine(InProcessEngine):
    """Engine `continuous`."""

    instead = 'use `engine="static"`'
    packs = True

    def __init__(
        self, loaded: LoadedModel, experiment: Experiment, target: InProcess | None = None
    ):
        self._loops: dict[str, _Loop] = {}
        self.replays = target is not None and target.cuda_graphs == "on"
        if self.replays:
            require_graphs(loaded.device)
        super().__init__(loaded, experiment, target)
        if WARM in self.target.prefix_cache:
            check_prompts([len(self.encode(each)) for each in experiment.prompts], PAGE_TOKENS)
            with paged_attention(self.loaded.model):
                self._loops[self._loop_key(WARM, experiment.kernels[0])] = _Loop(self, WARM)

    def prepare(self, trial: Trial) -> None:
        """If the prefix cache must be warm: empty it, and ask each prompt of the trial once."""
        if cache_state(trial.condition.placement) == WARM:
            key = self._loop_key(WARM, trial.condition.kernels)
            with paged_attention(self.loaded.model):
                if key not in self._loops or not self._loops[key].forget_prefixes():
                    self._loops[key] = _Loop(self, WARM)
                self._loops[key].fill(trial)

    def generate(self, trial: Trial, on_tokens: OnTokens | None) -> list[PartialCompletion]:
        """Submit each request at its arrival step, and step until all have ended."""
        state = cache_state(trial.condition.placement)
        key = self._loop_key(state, trial.condition.kernels)
        with paged_attention(self.loaded.model):
            if key not in self._loops:
                self._loops[key] = _Loop(self, state)
            return self._loops[key].run(trial, on_tokens)

    def _loop_key(self, state: str, kernels: str) -> str:
        """The loop that serves a trial: one for each state of the prefix cache.

        A graph holds the kernels that it was captured with, so then also one for each kernels.
        """
        return f"{state}, {kernels}" if self.replays else state

    def load(self, trial: Trial) -> LoadEvidence | None:
        """The prompt tokens that came from the prefix cache; None if its state is as-is.

        Raises MeasurementError if a warm cache did not answer all the blocks that it can, or a cold
        one answered any.
        """
        state = cache_state(trial.condition.placement)
        if state == AS_IS:
            return None
        found = self._loops[self._loop_key(state, trial.condition.kernels)].prefixes.tokens
        prompts = [self.encode(request.prompt) for request in trial.requests if state == WARM]
        check_found(found, sum(cached_part(len(prompt), PAGE_TOKENS) for prompt in prompts))
        return LoadEvidence(FORWARD_PASSES, 0, prefix_cache_hits=found)

    def reset(self) -> None:
        """Forget the loops with their caches; the next trial makes new ones."""
        self._loops = {}

    def unfit_because(self) -> str:
        """See `InProcessEngine.unfit_because`."""
        config = self.loaded.model.config.get_text_config()
        kinds = {*(getattr(config, "layer_types", None) or ())} - PAGED_KINDS
        if kinds:
            return f"its layers of kind {', '.join(sorted(kinds))} have no paged cache"
        if getattr(self.loaded.model, "_is_stateful", False):
            return "it keeps a state beside keys and values, which has no paged cache"
        if getattr(config, "kv_lora_rank", None):
            return "its latent attention (MLA) has no paged cache"
        return "its attention in transformers does not read the paged cache"


@contextmanager
def paged_attention(model: Any) -> Iterator[None]:
    """Give the model's attention the name that continuous batching needs, and then its own again.

    If transformers has `paged|…` entries (5.17), its manager would choose one itself, prefer flash
    attention if that is installed, and leave the model unfit for other forward passes.
    """
    from transformers import AttentionInterface

    own = model.config._attn_implementation
    paged = f"paged|{own}"
    if paged in AttentionInterface._global_mapping:
        model.set_attn_implementation(paged)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


class _Loop:
    """transformers' batch processor, stepped by hand."""

    def __init__(self, engine: ContinuousEngine, state: str = AS_IS):
        self._engine = engine
        self._budget = _sizes(engine)[1]
        self._manager = engine.loaded.model.init_continuous_batching(
            generation_config(engine), batching_config(engine, share_prefixes=state == WARM)
        )
        self._processor = self._manager._create_batch_processor()
        self._manager.batch_processor = self._processor
        self._logits = LastLogits(max(engine.experiment.batch_sizes), in_place=engine.replays)
        self._processor.model_runner._sample = self._logits.keep
        if state == WARM:
            check_sharing(self._processor.cache)
        self.prefixes = PrefixCount(self._processor.cache)
        self._partials: dict[str, PartialCompletion] = {}
        self._speaking: list[PartialCompletion] = []
        self._tokens: list[tuple[int, int, float, float]] = []

    def forget_prefixes(self) -> bool:
        """Empty the prefix cache; False if this transformers cannot, so that a new loop must."""
        evict = getattr(self._processor.cache, "evict_cached_blocks", None)
        if evict is not None:
            evict()
        return evict is not None

    def fill(self, trial: Trial) -> None:
        """Ask each prompt of the trial alone and wait for it, so that its blocks are kept."""
        for prompt in dict.fromkeys(request.prompt for request in trial.requests):
            alone = PlannedRequest(prompt, False, 0, FILLING_TOKENS)
            self.run(replace(trial, requests=(alone,)), None)

    def run(self, trial: Trial, on_tokens: OnTokens | None) -> list[PartialCompletion]:
        """Generate for one trial's requests; the completions are in their order."""
        self.prefixes.tokens = 0
        waiting = [(_request_id(position), each) for position, each in enumerate(trial.requests)]
        order = [request_id for request_id, _ in waiting]
        partials = self._partials = {}
        step = generated = 0
        while waiting or any(partial.finish_reason is None for partial in partials.values()):
            waiting = self._admit(waiting, step)
            generated += self._step()
            step += 1
            if on_tokens is not None:
                on_tokens(generated)
        self._drain()
        return [partials[request_id] for request_id in order]

    def _admit(
        self, waiting: list[tuple[str, PlannedRequest]], step: int
    ) -> list[tuple[str, PlannedRequest]]:
        """Submit requests that have arrived and fit whole into this step; returns the others."""
        active = sum(partial.finish_reason is None for partial in self._partials.values())
        room = self._budget - active
        later = []
        for request_id, request in waiting:
            prompt = self._engine.encode(request.prompt)
            if request.arrival_step > step or len(prompt) > room:
                later.append((request_id, request))
                continue
            room -= len(prompt)
            self._partials[request_id] = PartialCompletion(request.max_new_tokens, request.seed)
            self._manager.add_request(
                list(prompt), request_id=request_id, max_new_tokens=request.max_new_tokens
            )
        return later

    def _step(self) -> int:
        """One forward pass over whatever is scheduled; returns the tokens it generated."""
        processor = self._processor
        if not processor.prepare_next_batch():
            if any(partial.finish_reason is None for partial in self._partials.values()):
                raise MeasurementError("Continuous batching stalled with requests unanswered.")
            return 0
        batch = processor.inputs_and_outputs.requests_in_batch
        forward_pass = self._describe(batch)
        for entry in batch:
            self._partials[entry.state.request_id].joined_pass(
                forward_pass.rows, forward_pass.query_tokens
            )
        self._speaking = [
            self._partials[entry.state.request_id] for entry in batch if entry.has_new_token
        ]
        self._engine.begin_pass(forward_pass)
        decodes = all(entry.query_length == 1 for entry in batch)
        # An observer sees no op of a step that is replayed.
        replay = self._engine.replays and decodes and not self._engine.is_observed
        run_step(processor, self._engine.loaded.model, replay=replay)
        self._choose()
        for partial, token in zip(self._speaking, self._tokens, strict=True):
            partial.append(token, self._engine.loaded.eos_token_ids)
        processor.update_batch()
        return len(self._speaking)

    def _describe(self, batch: list[Any]) -> PackedPass:
        """The pass that transformers has scheduled. Keys are read only if someone observes."""
        key_bounds: tuple[list[int], ...] = ()
        if self._engine.is_observed:
            _, keys = self._processor.inputs_and_outputs.get_cumulative_seqlens()
            kinds = keys.values() if isinstance(keys, dict) else (keys,)
            key_bounds = tuple(bounds[: len(batch) + 1].tolist() for bounds in kinds)
        return PackedPass(
            tuple(_position(entry.state.request_id) for entry in batch),
            tuple(entry.query_length for entry in batch),
            tuple(entry.has_new_token for entry in batch),
            key_bounds,
        )

    def _choose(self) -> None:
        """Choose tokens after a step, and write their ids to the tensor that transformers reads.

        At temperature 0 it makes the same choice (argmax, first among equals), and keeps the
        runner-up.
        """
        rows = len(self._speaking)
        ranked = self._engine.choose(self._logits.take(rows), self._speaking)
        output_ids = self._processor.inputs_and_outputs.get_cb_kwargs()[2]
        output_ids[0, :rows].copy_(ranked.best)
        self._tokens = token_rows(ranked)

    def _drain(self) -> None:
        """Empty the manager's queue of results; a request that failed there fails here."""
        queue = self._manager.output_router.output_queue
        while not queue.empty():
            result = queue.get_nowait()
            partial = self._partials.get(result.request_id)
            if result.error is not None and partial is not None:
                partial.error = str(result.error)[:200]


def _request_id(position: int) -> str:
    """transformers' name for the request at a position of the trial."""
    return f"request-{position}"


def _position(request_id: str) -> int:
    """Inverse of `_request_id`."""
    return int(request_id.removeprefix("request-"))


def generation_config(engine: ContinuousEngine) -> Any:
    """transformers' configuration of the decoding; sampling is left to `_Loop`."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        max_new_tokens=engine.experiment.max_new_tokens,
        eos_token_id=list(engine.loaded.eos_token_ids) or -1,
        pad_token_id=pad_token_id(engine.loaded),
    )


def batching_config(engine: ContinuousEngine, *, share_prefixes: bool = False) -> Any:
    """transformers' configuration of the batching: no second stream, graphs if they are asked for.

    Shared prefixes make a request's chunks depend on the requests before it. They take twice the
    memory, so that no blocks of a prompt are evicted for those of the requests in flight.
    """
    from transformers import ContinuousBatchingConfig

    longest, budget = _sizes(engine)
    batch = max(engine.experiment.batch_sizes)
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    options: dict[str, Any] = {
        "page_size" if "page_size" in known else "block_size": PAGE_TOKENS,
        "num_blocks": (1 + share_prefixes) * batch * -(-longest // PAGE_TOKENS) + SPARE_PAGES,
        "max_batch_tokens": budget,
        "max_requests_per_batch": batch,
        "allow_block_sharing": share_prefixes,
        "use_async_batching": False,
        "use_cuda_graph": engine.replays,
    }
    if engine.replays:
        options["q_padding_interval_size"] = GRAPH_QUERIES
        options["kv_padding_interval_size"] = GRAPH_KEYS
    if "auto_switch_to_flash" in known:  # newer than 5.17, which switches nothing by itself
        options["auto_switch_to_flash"] = False
    return ContinuousBatchingConfig(**options)


def _sizes(engine: ContinuousEngine) -> tuple[int, int]:
    """(longest sequence, prompt tokens a step) that the engine's experiment needs."""
    fillers = FILLER_PROMPTS if engine.experiment.traffic == "mixed" else ()
    prompts = [len(engine.encode(text)) for text in (*engine.experiment.prompts, *fillers)]
    batch = max(engine.experiment.batch_sizes)
    budget = max(max(prompts) + batch, min(PREFILL_BUDGET_TOKENS, max(prompts) * batch))
    return max(prompts) + engine.experiment.max_new_tokens, budget
