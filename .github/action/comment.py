"""Keep one comment on the pull request up to date with the verdict.

Usage: comment.py SUMMARY.md

The comment is found by a hidden mark, which holds DETCHECK_NAME if that is set: each use of the
action that has a name keeps a comment of its own, with the name in its heading. A passing verdict
makes no new comment; it only updates one that is there. Nothing is sent if only the name and the
time of the run would change. Without a pull request, or without the permission to write (a fork),
it says so and ends with 0: a comment is never why a job fails.

In a workflow on `workflow_run` the pull request is found by the commit that was measured, as GitHub
names it. The summary comes from the measuring job, which may have run a fork's code: it is only
text, and its mentions notify nobody.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
HEADING = "### detcheck:"
PASSED = "✅ pass"
LONGEST = 60_000
"""Characters of a comment; GitHub refuses more than 65,536."""


def main(file: str) -> str:
    """Do what the module says; returns the sentence to print."""
    name = os.environ.get("DETCHECK_NAME", "")
    if name and not NAME.fullmatch(name):
        return "The input name must be letters, digits, and . _ or - between them: no comment."
    if not Path(file).exists():
        return "There is no verdict to comment on."
    try:
        return comment(Path(file).read_text(encoding="utf-8", errors="replace"), name)
    except urllib.error.HTTPError as error:
        return refusal(error.code)
    except (LookupError, TypeError, AttributeError):
        return (
            "The comment could not be written: the event, or GitHub's reply, lacks a field that "
            "names the pull request or its comments."
        )
    except (OSError, ValueError) as error:
        return f"The comment could not be written ({type(error).__name__}: {error})."


def refusal(status: int) -> str:
    """The sentence for a call that GitHub answered with an error's status."""
    if status in (401, 403, 404):
        return (
            f"The comment may not be written here (HTTP {status}): give the job the permission "
            "pull-requests: write, or, for forks, add the second workflow of detcheck's "
            "documentation (CI, Pull requests from forks)."
        )
    return f"The comment could not be written (HTTP {status})."


def comment(summary: str, name: str) -> str:
    """Keep the comment of the event's pull request; returns the sentence to print."""
    text, cause = shortened(summary), event()
    if "workflow_run" in cause:
        if not cause["workflow_run"].get("head_repository"):
            return (
                "The event names no repository of the commit that was measured (a fork that was "
                "removed, say), so its pull request cannot be found: no comment."
            )
        number, text = pull_request_of(cause["workflow_run"]), text.replace("@", "@\u200b")
    else:
        number = cause.get("pull_request", {}).get("number")
    if not isinstance(number, int):
        return "This job is of no pull request: no comment."
    heading = HEADING.replace(":", f" {name}:") if name else HEADING
    return keep(number, mark(name), text.replace(HEADING, heading, 1))


def mark(name: str) -> str:
    """The first line of the comment, by which it is found; readers do not see it."""
    return f"<!-- detcheck verdict{name and ' ' + name} -->"


def shortened(text: str) -> str:
    """The summary, cut at the end of a line if it is longer than a comment may be."""
    if len(text) <= LONGEST:
        return text
    return (
        text[:LONGEST].rpartition("\n")[0] + "\n\n… cut off here: the job's summary has the rest.\n"
    )


def event() -> dict[str, Any]:
    """The event that started the workflow; empty if there is none."""
    path = os.environ.get("GITHUB_EVENT_PATH")
    if not path or not Path(path).exists():
        return {}
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def pull_request_of(run: dict[str, Any]) -> int | None:
    """The open pull request whose newest commit is the one that a workflow run measured.

    Nothing but GitHub's own event and API is asked: a number in the artifact could be any.
    """
    owner = run["head_repository"]["owner"]["login"]
    head = urllib.parse.quote(f"{owner}:{run['head_branch']}")
    for found in ask("GET", f"pulls?state=open&per_page=100&head={head}"):
        if found["head"]["sha"] == run["head_sha"]:
            return int(found["number"])
    return None


def keep(number: int, first_line: str, text: str) -> str:
    """Write, update or leave the comment of pull request `number` that begins with `first_line`."""
    body = f"{first_line}\n{text}"
    existing = find(number, first_line)
    if existing is None:
        if PASSED in body.splitlines()[1]:
            return "The verdict is pass: no comment is needed."
        ask("POST", f"issues/{number}/comments", {"body": body})
        return "The verdict was written as a comment."
    if unvaried(existing["body"]) == unvaried(body):
        return "The comment is up to date."
    ask("PATCH", f"issues/comments/{existing['id']}", {"body": body})
    return "The comment was updated."


def unvaried(body: str) -> list[str]:
    """The lines of a comment without the one that every run changes: its name and time."""
    lines = (line.rstrip() for line in body.strip().splitlines())
    return [line for line in lines if not line.startswith("| run |")]


def find(number: int, first_line: str) -> dict[str, Any] | None:
    """The comment that begins with `first_line`, looked for on every page."""
    page = 1
    while True:
        comments = ask("GET", f"issues/{number}/comments?per_page=100&page={page}")
        for comment in comments:
            if str(comment.get("body", "")).startswith(first_line):
                return dict(comment)
        if len(comments) < 100:
            return None
        page += 1


def ask(method: str, path: str, data: dict[str, Any] | None = None) -> Any:
    """One call of GitHub's API for this repository."""
    api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    request = urllib.request.Request(
        f"{api}/repos/{os.environ['GITHUB_REPOSITORY']}/{path}",
        method=method,
        data=None if data is None else json.dumps(data).encode(),
        headers={
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {os.environ.get('GITHUB_TOKEN', '')}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


if __name__ == "__main__":
    print(main(sys.argv[1]))
