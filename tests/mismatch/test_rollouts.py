"""Files of rollouts: the documented names, those of TRL and verl, and bad lines by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detcheck.errors import UsageError
from detcheck.mismatch.rollouts import Rollout, read_rollouts, rollout_line

ONE = {"prompt_ids": [5, 6], "completion_ids": [7, 8, 9], "logprobs": [-0.5, -1.5, -0.25]}
WANTED = Rollout(prompt_ids=(5, 6), completion_ids=(7, 8, 9), logprobs=(-0.5, -1.5, -0.25))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.jsonl"


def write(file: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


FORMS: dict[str, dict[str, Any]] = {
    "documented": ONE,
    "TRL": {
        "prompt_ids": [5, 6],
        "completion_ids": [7, 8, 9],
        "sampling_per_token_logps": [-0.5, -1.5, -0.25],
    },
    "TRL, a padded batch": {
        "prompt_ids": [[0, 5, 6]],
        "prompt_mask": [[0, 1, 1]],
        "completion_ids": [[7, 8, 9, 0]],
        "completion_mask": [[1, 1, 1, 0]],
        "logprobs": [[-0.5, -1.5, -0.25]],
    },
    "verl, agent loop": {
        "prompt_ids": [5, 6],
        "response_ids": [7, 8, 9],
        "response_logprobs": [-0.5, -1.5, -0.25],
        "response_mask": [1, 1, 1],
    },
    "verl, tensors": {
        "prompts": [[0, 5, 6]],
        "responses": [[7, 8, 9, 0]],
        "attention_mask": [[0, 1, 1, 1, 1, 1, 0]],
        "rollout_log_probs": [[-0.5, -1.5, -0.25, 0.0]],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rollout(file: Path, form: str) -> None:
    assert read_rollouts(write(file, FORMS[form])) == (WANTED,)


def test_a_batch_of_several_gives_each(file: Path) -> None:
    batch = {name: [value, value] for name, value in ONE.items()}
    assert read_rollouts(write(file, batch | {"temperature": 0.5}, ONE)) == (
        *[Rollout(**dict.fromkeys(()), **_fields(WANTED), temperature=0.5)] * 2,
        WANTED,
    )


def _fields(rollout: Rollout) -> dict[str, Any]:
    return {name: getattr(rollout, name) for name in ("prompt_ids", "completion_ids", "logprobs")}


def test_tokens_of_a_tool_are_kept_and_not_measured(file: Path) -> None:
    (found,) = read_rollouts(write(file, ONE | {"response_mask": [1, 0, 1]}))
    assert found.completion_ids == (7, 8, 9)
    assert found.places == (0, 2)


@pytest.mark.parametrize("beside", [None, float("nan")])
def test_a_token_of_a_tool_needs_no_log_probability(file: Path, beside: float | None) -> None:
    row = ONE | {"logprobs": [-0.5, beside, -0.25], "response_mask": [1, 0, 1]}
    (found,) = read_rollouts(write(file, row))
    assert found.logprobs == (-0.5, 0.0, -0.25)
    assert read_rollouts(write(file, rollout_line(found))) == (found,)


def test_minus_one_is_no_top_k(file: Path) -> None:
    assert read_rollouts(write(file, ONE | {"top_k": -1})) == (WANTED,)


def test_what_is_written_is_read_back(file: Path) -> None:
    rollout = Rollout(
        **_fields(WANTED), sampled=(True, False, True), prompt="Why?", temperature=0.7, top_p=0.9,
        top_k=5, min_p=0.1, seed=3,
    )  # fmt: skip
    write(file, rollout_line(rollout))
    (found,) = read_rollouts(file)
    assert {**_fields(found), "temperature": found.temperature, "prompt": found.prompt} == {
        **_fields(rollout),
        "temperature": 0.7,
        "prompt": "Why?",
    }
    assert found.places == (0, 2)


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "line 2 is not valid JSON"),
    "no object": ([1], "line 2 is not a JSON object"),
    "no log-probabilities": (
        {"prompt_ids": [1], "completion_ids": [2]},
        "line 2 has no 'logprobs'",
    ),
    "too few": (ONE | {"logprobs": [-1.0]}, "line 2 has 1 log-probability for 3 tokens"),
    "probabilities": (ONE | {"logprobs": [0.5, 0.2, 0.9]}, "line 2 has a log-probability that is"),
    "no numbers": (ONE | {"completion_ids": ["a", "b", "c"]}, "line 2 is no rollout"),
    "negative ids": (ONE | {"prompt_ids": [-1]}, "line 2 has a negative token id"),
    "no prompt": (ONE | {"prompt_ids": []}, "line 2 has an empty prompt"),
    "mask": (ONE | {"completion_mask": [1]}, "line 2 has a mask of another length"),
    "temperature": (ONE | {"temperature": 0}, "line 2 has the temperature 0"),
    "no temperature": (ONE | {"temperature": float("nan")}, "line 2 has the temperature nan"),
    "top-p": (ONE | {"top_p": 0}, "line 2 has a top_p or min_p"),
    "min-p": (ONE | {"min_p": 2}, "line 2 has a top_p or min_p"),
    "a number of ids": (ONE | {"prompt_ids": 5}, "'prompt_ids' that is no list"),
    "a number of log-probabilities": (ONE | {"logprobs": -1}, "'logprobs' that is no list"),
    "one prompt for a batch": (
        {"prompt_ids": [5, 6], "completion_ids": [[7], [8]], "logprobs": [[-1.0], [-1.0]]},
        "'prompt_ids' that is no list",
    ),
    "a number as mask": (ONE | {"completion_mask": 1}, "'mask' that is no list"),
    "words as mask": (ONE | {"completion_mask": ["0", "1", "1"]}, "mask that is not of 0 and 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(file: Path, name: str) -> None:
    row, message = BAD[name]
    with pytest.raises(UsageError, match=message):
        read_rollouts(write(file, ONE, row))


def test_a_file_without_rollouts_is_refused(file: Path) -> None:
    with pytest.raises(UsageError, match="There is no rollouts file"):
        read_rollouts(file)
    file.write_text("\n\n")
    with pytest.raises(UsageError, match="holds no rollouts"):
        read_rollouts(file)
