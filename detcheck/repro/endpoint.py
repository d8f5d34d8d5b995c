"""A script of the standard library alone that sends a server a burst in which answers diverge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from detcheck import __version__
from detcheck.errors import UsageError
from detcheck.probes.subject import Subject, subject_at_one_place
from detcheck.repro import files
from detcheck.rundir import Run
from detcheck.text import one_line

CHECK = "request"
"""Name of the endpoint check that holds the fields of a request as they were sent."""
ROUNDS = 5
"""How often the script sends the burst before it says that the answers agree."""
KEY_VARIABLE = "API_KEY"
"""Environment variable from which the script reads a key, if the server wants one."""


def write_burst(run: Run, folder: Path) -> list[Path]:
    """Write a script that repeats the run's earliest divergence, the environment and an issue text.

    The script holds the server's URL, the prompts and the fields that were sent; no key and no
    header. Nothing is sent now. Returns the paths. Raises UsageError if no answers of one server
    diverge, if the run has no server, or does not hold what was sent; StorageError if `folder`
    cannot be written.
    """
    places = {place: (url, cache) for place, url, cache in getattr(run.target, "places", ())}
    subject, divergence = subject_at_one_place(run)
    placement = subject.trial.condition.placement
    if placement not in places:
        raise UsageError(
            f"{run.path} was measured by the engine {run.target.engine!r}, which has no server to "
            "ask again: use `repro` with a run of a server, or of a model in process."
        )
    url, cache = places[placement]
    path, fields = _sent(run, placement)
    values = {
        "url": url.rstrip("/") + path,
        "model": str(fields.get("model")),
        "version": __version__,
        "batch_size": len(subject.trial.requests),
        "position": subject.num_tokens - 1,
        "reference": one_line(f"…{divergence.context}{divergence.reference_piece}"),
        "other": one_line(f"…{divergence.context}{divergence.piece}"),
        "key_variable": KEY_VARIABLE,
    }
    script = files.render(
        "endpoint.py.j2",
        fields=_python(fields),
        requests=_requests(subject, limit_field=_limit_field(fields)),
        chat=path.endswith("/chat/completions"),
        fresh_salt="cache_salt" in fields and cache == "cold",
        rounds=ROUNDS,
        **values,
    )
    environment = files.environment_text(run.environment)
    issue = files.render(
        "endpoint_issue.md.j2",
        script=script.rstrip(),
        environment=environment.rstrip(),
        server=_server(run),
        **values,
    )
    contents = {files.SCRIPT: script, files.ENVIRONMENT: environment, files.ISSUE: issue}
    return files.write(folder, contents)


def _sent(run: Run, placement: str) -> tuple[str, dict[str, Any]]:
    """Path and fields of the run's requests, without the prompt."""
    for check in run.endpoint_checks:
        if check.name == CHECK and check.placement in (placement, ""):
            path, _, fields = check.sentence.removeprefix("POST ").partition(" ")
            return path, json.loads(fields)
    raise UsageError(
        f"{run.path} does not hold the fields that its server was sent: measure it again, then use "
        "`repro`."
    )


def _limit_field(fields: dict[str, Any]) -> str:
    return "max_tokens" if "max_tokens" in fields else "max_completion_tokens"


def _requests(subject: Subject, limit_field: str) -> str:
    """The trial's requests as code: prompt, token limit, seed and whether it is compared.

    A prompt that is a chat is the list of its messages.
    """
    experiment = subject.experiment
    chats = {
        prompt: msgspec.to_builtins(list(item.messages))
        for prompt, item in zip(experiment.prompts, experiment.items, strict=False)
        if item.messages
    }
    lines = (
        f"    ({chats.get(planned.prompt, planned.prompt)!r}, {planned.max_new_tokens}, "
        f"{planned.seed}, {planned.is_probe}),"
        for planned in subject.trial.requests
    )
    return f"LIMIT_FIELD = {limit_field!r}\nREQUESTS = [\n" + "\n".join(lines) + "\n]"


def _python(fields: dict[str, Any]) -> str:
    inside = "".join(f"    {name!r}: {value!r},\n" for name, value in fields.items())
    return "{\n" + inside + "}"


def _server(run: Run) -> list[str]:
    """The results of the run's checks of its servers, a line each."""
    lines = [f"{check.name}: {check.sentence}" for check in run.endpoint_checks]
    return [line for line in lines if not line.startswith(f"{CHECK}:")]
