"""Rollouts sampled from a server: a seed a request, token ids, and a refusal without ids."""

from __future__ import annotations

import pytest
from asking import ask

from detcheck.engines import open_engine
from detcheck.errors import MeasurementError, ModelError
from detcheck.mismatch.measure import measure_mismatch
from detcheck.mismatch.options import TrainerOptions
from detcheck.mismatch.sampling import sample


def rollouts_of(server):
    experiment, target = ask(
        endpoints=[server.url], prompts=("Why?", "Who?"), batch_sizes=(3,), completions=6,
        max_new_tokens=5, temperature=1.0,
    )  # fmt: skip
    experiment = target.settle(experiment)
    engine = open_engine(experiment, target)
    try:
        return sample(engine, experiment, "as-served", 40, lambda prompt: (len(prompt), 1))
    finally:
        engine.close()


def test_each_request_has_its_own_seed_and_its_tokens(serve):
    server = serve()
    rollouts = rollouts_of(server)
    assert [each.seed for each in rollouts] == [40, 41, 42, 43, 44, 45]
    assert {body["seed"] for body in server.behaviour.seen} >= {40, 41, 42, 43, 44, 45}
    assert [each.prompt for each in rollouts] == ["Why?", "Who?"] * 3
    assert all(len(each.completion_ids) == len(each.logprobs) == 5 for each in rollouts)
    assert server.behaviour.most_in_flight >= 3


def test_a_server_without_token_ids_is_refused(serve):
    with pytest.raises(MeasurementError, match="gives no token ids or no log-probabilities"):
        rollouts_of(serve(token_ids=False))


@pytest.mark.parametrize(("trainer_model", "wanted"), [(None, "toy"), ("embedded", None)])
def test_the_trainer_has_the_servers_model_unless_it_is_named(
    serve, monkeypatch, trainer_model, wanted
):
    """A server whose only model is not named must not be held to the embedded model."""
    asked = []

    def load(name, **options):
        asked.append(name)
        raise ModelError("There is no such model.")

    monkeypatch.setattr("detcheck.mismatch.measure.models.load", load)
    experiment, target = ask(endpoints=[serve().url], prompts=("Why?",), batch_sizes=(1,))
    with pytest.raises(ModelError) as raised:
        measure_mismatch(experiment, target, TrainerOptions(trainer_model=trainer_model))
    assert asked == [wanted]
    assert ("`trainer_model`" in str(raised.value)) == (trainer_model is None)
