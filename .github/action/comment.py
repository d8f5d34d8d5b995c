"""Keep one comment on the pull request up to date with the verdict.

Usage: comment.py SUMMARY.md

The comment is found by a hidden mark. A passing verdict makes no new comment; it only updates one
that is there. Nothing is sent if the comment would not change. Without a pull request, or without
the permission to write (a fork), it says so and ends with 0: a comment is never why a job fails.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

MARK = "<!-- detcheck verdict -->"
PASSED = "✅ pass"
LONGEST = 60_000
"""Characters of a comment; GitHub refuses more than 65,536."""


def main(file: str) -> str:
    """Do what the module says; returns the sentence to print."""
    number = pull_request()
    summary = Path(file)
    if number is None:
        return "This job is of no pull request: no comment."
    if not summary.exists():
        return "There is no verdict to comment on."
    body = f"{MARK}\n{summary.read_text(encoding='utf-8')[:LONGEST]}"
    try:
        return keep(number, body)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            return f"The comment may not be written here (HTTP {error.code}), as in forks."
        return f"The comment could not be written (HTTP {error.code})."
    except OSError as error:
        return f"The comment could not be written ({error})."


def pull_request() -> int | None:
    """The number of the pull request that the job runs for; None if it runs for none."""
    path = os.environ.get("GITHUB_EVENT_PATH")
    if not path or not Path(path).exists():
        return None
    event = json.loads(Path(path).read_text(encoding="utf-8"))
    number = event.get("pull_request", {}).get("number")
    return number if isinstance(number, int) else None


def keep(number: int, body: str) -> str:
    """Write, update or leave the comment of pull request `number`."""
    existing = find(number)
    if existing is None:
        if PASSED in body.splitlines()[1]:
            return "The verdict is pass: no comment is needed."
        ask("POST", f"issues/{number}/comments", {"body": body})
        return "The verdict was written as a comment."
    if existing["body"] == body:
        return "The comment is up to date."
    ask("PATCH", f"issues/comments/{existing['id']}", {"body": body})
    return "The comment was updated."


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
