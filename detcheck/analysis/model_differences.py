"""Whether two runs asked the same model, as far as both record it."""

from __future__ import annotations

from detcheck.rundir import Run
from detcheck.text import count

MODEL = (
    *("name", "revision", "weights_digest", "config_digest", "tokenizer_digest"),
    *("chat_template_digest", "dtype"),
)
"""Fields of a model's identity that can change its answers."""


def model_differences(left: Run, right: Run) -> list[str]:
    """Recorded facts of the two models that differ, a phrase each."""
    ours, theirs = left.model, right.model
    found = [
        f"{name.replace('_', ' ')} {one} → {other}"
        for name in MODEL
        if (one := getattr(ours, name)) and (other := getattr(theirs, name)) and one != other
    ]
    if changed := other_token_ids(left, right):
        found.append(f"token ids of {count(changed, 'common prompt')}")
    return found


def other_token_ids(left: Run, right: Run) -> int:
    """How many common prompts became other token ids in one run than in the other."""
    ours, theirs = _digests(left), _digests(right)
    return sum(ours[prompt] != theirs[prompt] for prompt in ours.keys() & theirs.keys())


def _digests(run: Run) -> dict[str, str]:
    """The digest of each prompt's token ids; empty if they are not known."""
    return dict(zip(run.experiment.prompts, run.model.prompt_digests, strict=False))
