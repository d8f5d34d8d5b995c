"""Run a trial again and look at one request in it: which forward passes it is in, and where.

Seen from the model's forward: hooks read where the request lies in what goes in, and its row of
the logits that come out, so both in-process engines are watched alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from detcheck.engines.in_process import InProcessEngine
from detcheck.errors import MeasurementError
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.self_check import PASSED
from detcheck.kernels.settings import STOCK, KernelSettings
from detcheck.traffic import Trial


@dataclass(frozen=True, slots=True)
class Extent:
    """Along some dimension a forward pass has `whole` entries, the request's from `start` on."""

    own: int
    whole: int
    start: int


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the request: 0 is its prefill."""

    index: int
    extents: tuple[Extent, ...]
    """Along tokens, keys, requests, speaking requests: whatever grows with the load."""


class Observer(Protocol):
    """What watches a replay."""

    def watch(self, step: Step) -> AbstractContextManager[Any] | None:
        """A context for the forward pass of `step`; None to let it pass unwatched."""
        ...


class _ReachedError(Exception):
    """The replay has come to the step that it was to end with."""


@dataclass(slots=True)
class Replayed:
    """What a replay gave: the request's best two tokens at each step."""

    tokens: list[int] = field(default_factory=list)
    runners_up: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Best minus second-best logit."""
    logits: torch.Tensor | None = None
    """(vocabulary,), of the last step."""


def replay(
    engine: InProcessEngine,
    trial: Trial,
    request: int,
    kernels: str,
    num_steps: int,
    observer: Observer | None = None,
    expected: list[int] | None = None,
) -> Replayed:
    """Answer `trial` again up to forward pass `num_steps` of its `request` (a position in it).

    Ends early where the request's token is not that of `expected`: there the two part.
    """
    watcher = _Watcher(engine, request, num_steps, observer, expected)
    model = engine.loaded.model
    with ExitStack() as stack:
        stack.enter_context(_kernels(kernels))
        stack.enter_context(torch.inference_mode())
        for hook in (
            model.register_forward_pre_hook(watcher.before, with_kwargs=True),
            model.register_forward_hook(watcher.after),
        ):
            stack.callback(hook.remove)
        stack.callback(engine.reset)
        stack.callback(watcher.close)
        with contextlib.suppress(_ReachedError):
            engine.answer(trial, None)
    return watcher.result


@contextlib.contextmanager
def _kernels(kernels: str) -> Iterator[None]:
    if kernels == STOCK:
        yield
        return
    with batch_invariant(KernelSettings.parse(kernels).families) as mode:
        if mode.proof().self_check != PASSED:
            raise MeasurementError(f"{kernels} is not in force: {mode.proof().self_check}.")
        yield


class _Watcher:
    """Hooks around the model's forward, for one request."""

    def __init__(
        self,
        engine: InProcessEngine,
        request: int,
        num_steps: int,
        observer: Observer | None,
        expected: list[int] | None,
    ):
        self.result = Replayed()
        self._engine = engine
        self._request = request
        self._num_steps = num_steps
        self._observer = observer
        self._expected = expected
        self._logits_row: int | None = None
        self._context: AbstractContextManager[Any] | None = None

    def before(self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the request in the pass that begins."""
        found = self._packed(kwargs) if "cu_seq_lens_q" in kwargs else self._padded(args, kwargs)
        if found is None:
            self._logits_row = None
            return
        extents, self._logits_row = found
        step = Step(len(self.result.tokens), extents)
        self._context = self._observer.watch(step) if self._observer is not None else None
        if self._context is not None:
            self._context.__enter__()

    def after(self, _model: Any, _args: Any, output: Any) -> None:
        """Take the request's logits."""
        self.close()
        if self._logits_row is None:
            return
        logits = output.logits
        row = logits[0] if logits.shape[0] == 1 else logits[:, -1]
        self._take(row[self._logits_row].detach().float().cpu().clone())

    def close(self) -> None:
        """End the watch of a pass, also of one that failed."""
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(None, None, None)

    def _take(self, logits: torch.Tensor) -> None:
        result = self.result
        best, runner_up = logits.topk(2).indices.tolist()
        token = int(logits.argmax())
        if token != best:  # a tie, of which argmax takes the first
            best, runner_up = token, best
        result.tokens.append(best)
        result.runners_up.append(runner_up)
        result.gaps.append(float(logits[best] - logits[runner_up]))
        result.logits = logits
        index = len(result.tokens) - 1
        parted = (
            self._expected is not None
            and index < len(self._expected)
            and best != self._expected[index]
        )
        if parted or len(result.tokens) >= self._num_steps:
            raise _ReachedError

    def _padded(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Extent, ...], int]:
        """Lockstep batches, padded on the left: (requests, tokens)."""
        input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        mask = kwargs.get("attention_mask")
        requests, tokens = input_ids.shape
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            keys, own_keys = mask.shape[1], int(mask[self._request].sum())
        else:
            keys = own_keys = tokens
        own = own_keys if tokens == keys else tokens
        row = self._request
        return (
            Extent(1, requests, row),
            Extent(own, tokens, tokens - own),
            Extent(own_keys, keys, keys - own_keys),
            Extent(own, requests * tokens, row * tokens + tokens - own),
        ), row

    def _packed(self, kwargs: dict[str, Any]) -> tuple[tuple[Extent, ...], int] | None:
        """Continuous batches: all requests' tokens in one row, bounded by cumulative lengths."""
        engine: Any = self._engine
        batch = engine._loop._processor.inputs_and_outputs.requests_in_batch
        ids = [entry.state.request_id for entry in batch]
        name = f"request-{self._request}"
        if name not in ids:
            return None
        at = ids.index(name)
        keys = kwargs["cu_seq_lens_k"]
        keys = next(iter(keys.values())) if isinstance(keys, dict) else keys
        speaking = [entry.state.request_id for entry in batch if entry.has_new_token]
        if name not in speaking:
            return None
        row = speaking.index(name)
        return (
            _extent(kwargs["cu_seq_lens_q"], at),
            _extent(keys, at),
            Extent(1, len(speaking), row),
        ), row


def _extent(bounds: torch.Tensor, at: int) -> Extent:
    whole = bounds.tolist()
    return Extent(whole[at + 1] - whole[at], whole[-1], whole[at])
