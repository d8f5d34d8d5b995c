"""Keep one comment on the pull request up to date with the verdict.

Usage: comment.py SUMMARY.md

The comment is found by a hidden mark. A passing verdict makes no new comment; it only updates one
that is there. Nothing is sent if only the name and the time of the run would change. Without a
pull request, or without the permission to write (a fork), it says so and ends with 0: a comment is
never why a job fails.

In a workflow on `workflow_run` the pull request is found by the commit that was measured, as GitHub
names it. The summary comes from the measuring job, which may have run a fork's code: it is only
text, and its mentions notify nobody.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

MARK = "<!-- detcheck verdict -->"
PASSED = "✅ pass"
LONGEST = 60_000
"""Characters of a comment; GitHub refuses more than 65,536."""


def main(file: str) -> str:
    """Do what the module says; returns the sentence to print."""
    summary, told = Path(file), event()
    if not summary.exists():
        return "There is no verdict to comment on."
    text = shortened(summary.read_text(encoding="utf-8", errors="replace"))
    try:
        if "workflow_run" in told:
            number, text = pull_request_of(told["workflow_run"]), text.replace("@", "@\u200b")
        else:
            number = told.get("pull_request", {}).get("number")
        if not isinstance(number, int):
            return "This job is of no pull request: no comment."
        return keep(number, f"{MARK}\n{text}")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            return (
                f"The comment may not be written here (HTTP {error.code}): give the job the "
                "permission pull-requests: write, or, for forks, add the second workflow of "
                "detcheck's documentation (CI, Pull requests from forks)."
            )
        return f"The comment could not be written (HTTP {error.code})."
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"The comment could not be written ({type(error).__name__}: {error})."


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


def keep(number: int, body: str) -> str:
    """Write, update or leave the comment of pull request `number`."""
    existing = find(number)
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


def find(number: int) -> dict[str, Any] | None:
    """The comment with our mark, looked for on every page."""
    page = 1
    while True:
        comments = ask("GET", f"issues/{number}/comments?per_page=100&page={page}")
        for comment in comments:
            if str(comment.get("body", "")).startswith(MARK):
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
