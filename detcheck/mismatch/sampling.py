"""Samples rollouts: every request with a seed of its own, in batches that the engine forms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from detcheck.completion import Completion
from detcheck.engines import Engine
from detcheck.errors import MeasurementError
from detcheck.experiment import Experiment
from detcheck.grid import Condition
from detcheck.mismatch.rollouts import Rollout
from detcheck.traffic import ARRIVAL_WINDOW_STEPS, PlannedRequest, Trial


def sample(
    engine: Engine,
    experiment: Experiment,
    kernels: str,
    first_seed: int,
    encode: Callable[[str], tuple[int, ...]],
) -> tuple[Rollout, ...]:
    """`completions` rollouts of the prompts of `experiment`, which take turns.

    The batch size is the largest of the experiment. `encode` gives a prompt's token ids. A rollout
    without a token is left out. Raises MeasurementError if a request fails, or if the engine gives
    no token ids or log-probabilities.
    """
    rollouts = []
    for trial in _trials(experiment, kernels, first_seed):
        result = engine.run_trial(trial)
        answers = dict(result.completions)
        for position, request in enumerate(trial.requests):
            completion = answers.get(position)
            if completion is None or completion.error is not None:
                why = "no answer" if completion is None else completion.error
                raise MeasurementError(f"A request of the sampler failed ({why}): measure again.")
            rollouts.append(_rollout(completion, request, experiment, encode(request.prompt)))
    return tuple(rollout for rollout in rollouts if rollout.completion_ids)


def _trials(experiment: Experiment, kernels: str, first_seed: int) -> Iterator[Trial]:
    """Batches of requests whose prompts take turns, each request with its own seed."""
    batch_size = max(experiment.batch_sizes)
    prompts = experiment.prompts
    total = experiment.completions
    generator = random.Random(experiment.load_seed)
    requests = [
        PlannedRequest(
            prompts[index % len(prompts)],
            True,
            generator.randrange(ARRIVAL_WINDOW_STEPS),
            experiment.max_new_tokens,
            first_seed + index,
        )
        for index in range(total)
    ]
    for start in range(0, total, batch_size):
        batch = tuple(requests[start : start + batch_size])
        condition = Condition(0, kernels, len(batch), len(batch))
        yield Trial(condition, start // batch_size, batch)


def _rollout(
    completion: Completion,
    request: PlannedRequest,
    experiment: Experiment,
    prompt_ids: Sequence[int],
) -> Rollout:
    if completion.token_ids is None or completion.top_two is None:
        raise MeasurementError(
            "The sampler gives no token ids or no log-probabilities, so a trainer cannot score its "
            "tokens: use an engine in this process, a server that returns token ids, or `rollouts`."
        )
    return Rollout(
        prompt_ids=tuple(prompt_ids),
        completion_ids=completion.token_ids,
        logprobs=completion.top_two.logprobs,
        prompt=request.prompt,
        temperature=experiment.temperature or 1.0,
        top_p=experiment.top_p,
        top_k=experiment.top_k,
        min_p=experiment.min_p,
        seed=request.seed,
    )
