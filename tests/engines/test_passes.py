"""Forward passes as the engines publish them: each request lies where its place says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import conditions_of, settled

from detcheck.engines.continuous import ContinuousEngine
from detcheck.engines.in_process import InProcessEngine
from detcheck.engines.passes import Extent, ForwardPass, PackedPass, PaddedPass
from detcheck.engines.static import StaticEngine
from detcheck.models import LoadedModel
from detcheck.traffic import Trial, plan_trials

ENGINES = {"continuous": ContinuousEngine, "static": StaticEngine}


class TokensOf:
    """An observer that reads the input tokens of one request from the model's own input."""

    def __init__(self, model: Any, request: int, place_of: int):
        self._model = model
        self._request = request
        self._place_of = place_of
        self.read: list[list[int]] = []
        self.chosen: list[int] = []
        self.rows: list[int] = []

    def around(self, forward_pass: ForwardPass) -> Any:
        there = forward_pass.place(self._request) and forward_pass.place(self._place_of)
        return self._reading(forward_pass) if there else None

    @contextmanager
    def _reading(self, forward_pass: ForwardPass) -> Iterator[None]:
        place = forward_pass.place(self._place_of)
        own = forward_pass.place(self._request)
        assert place is not None
        assert own is not None

        def read(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
            tokens = own.extents[1 if isinstance(forward_pass, PaddedPass) else 0].own
            end = place.last_token + 1
            self.read.append(args[0][place.row, end - tokens : end].tolist())

        hook = self._model.get_input_embeddings().register_forward_pre_hook(read)
        self.rows.append(forward_pass.rows)
        try:
            yield
        finally:
            hook.remove()

    def scored(self, forward_pass: ForwardPass, scores: Any, chosen: Any) -> None:
        place = forward_pass.place(self._place_of)
        if forward_pass.place(self._request) and place:
            assert int(scores[place.score_row].argmax()) == int(chosen.best[place.score_row])
            self.chosen.append(int(chosen.best[place.score_row]))


def mixed_trial(loaded: LoadedModel, name: str) -> tuple[InProcessEngine, Trial]:
    experiment = settled(
        prompts=("What is the sea?",), kernels=("stock",), batch_sizes=(5,), completions=15,
        max_new_tokens=8, traffic="mixed",
    )  # fmt: skip
    engine = ENGINES[name](loaded, experiment)
    return engine, plan_trials(experiment, conditions_of(experiment)[0])[2]


@pytest.mark.parametrize("name", ENGINES)
def test_each_request_lies_where_its_place_says(tiny_model: LoadedModel, name: str) -> None:
    engine, trial = mixed_trial(tiny_model, name)
    for request, planned in enumerate(trial.requests):
        observer = TokensOf(tiny_model.model, request, request)
        with torch.inference_mode(), engine.observed_by(observer):
            partial = engine.generate(trial, None)[request]
        read = observer.read[: len(partial.token_ids)]
        assert read[0] == list(engine.encode(planned.prompt))
        assert [token for (token,) in read[1:]] == partial.token_ids[:-1]
        assert observer.chosen[: len(partial.token_ids)] == partial.token_ids
        assert observer.rows[: len(partial.rows)] == partial.rows
    assert not tiny_model.model._forward_hooks


@pytest.mark.parametrize("name", ENGINES)
def test_at_another_requests_place_other_tokens_are_read(
    tiny_model: LoadedModel, name: str
) -> None:
    """The twin: the check above must be able to fail."""
    engine, trial = mixed_trial(tiny_model, name)
    prompts = [request.prompt for request in trial.requests]
    other = next(index for index, prompt in enumerate(prompts) if prompt != prompts[0])
    together = tuple(replace(request, arrival_step=0) for request in trial.requests)
    observer = TokensOf(tiny_model.model, 0, other)
    with torch.inference_mode(), engine.observed_by(observer):
        engine.generate(replace(trial, requests=together), None)
    assert observer.read[0] != list(engine.encode(prompts[0]))


@pytest.mark.parametrize("name", ENGINES)
def test_an_observer_that_stops_the_trial_leaves_no_hook(
    tiny_model: LoadedModel, name: str
) -> None:
    engine, trial = mixed_trial(tiny_model, name)

    class Stop(Exception):  # noqa: N818
        pass

    class Stopping(TokensOf):
        def scored(self, *_: Any) -> None:
            raise Stop

    with pytest.raises(Stop), engine.observed_by(Stopping(tiny_model.model, 0, 0)):
        engine.generate(trial, None)
    engine.reset()
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in tiny_model.model.modules()
    )
    assert len(engine.run_trial(trial).completions) == trial.num_probes


PACKED = PackedPass((4, 0, 2), (7, 1, 3), (True, False, True), ((0, 7, 20, 23),))


def test_a_packed_pass() -> None:
    assert (PACKED.rows, PACKED.query_tokens) == (3, 11)
    place = PACKED.place(2)
    assert place is not None
    assert place.extents == (Extent(3, 11, 8), Extent(3, 23, 20), Extent(1, 2, 1))
    assert (place.row, place.last_token, place.score_row) == (0, 10, 1)
    assert PACKED.place(0) is None, "it is given no token after this pass"
    assert PACKED.place(1) is None, "it takes no part"


def test_a_padded_prefill_and_a_padded_decode() -> None:
    prefill = PaddedPass(2, 9, 9, (9, 5))
    assert (prefill.rows, prefill.query_tokens) == (2, 18)
    place = prefill.place(1)
    assert place is not None
    assert place.extents == (
        Extent(1, 2, 1), Extent(5, 9, 4), Extent(5, 9, 4), Extent(5, 18, 13),
    )  # fmt: skip
    assert (place.row, place.last_token, place.score_row) == (1, 8, 1)
    decode = PaddedPass(2, 1, 11, (11, 7)).place(1)
    assert decode is not None
    assert decode.extents == (
        Extent(1, 2, 1), Extent(1, 1, 0), Extent(7, 11, 4), Extent(1, 2, 1),
    )  # fmt: skip
