"""The GitHub Action: its scripts, run as it runs them, against a fake of the few API calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest
from servers.faults import Faults
from servers.running import serve
from sweeps import few

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / ".github/action"
QUICK = {"quiet_s": 0.01, "answer_tokens": 6}
FILE = """
[experiment]
completions = {completions}
batch-sizes = [1, 8]
max-new-tokens = 6
[target]
endpoints = ["{url}"]
"""


class GitHub(ThreadingHTTPServer):
    """Comments of one pull request; `refuse` answers every call with this status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.comments: list[dict] = []
        self.calls: list[str] = []
        self.pulls: list[dict] = []
        self.asked: list[str] = []
        """The heads by which pull requests were looked for."""
        self.refuse: int | None = None


class Handler(BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        if "/pulls?" in self.path:
            self.server.asked += parse_qs(urlsplit(self.path).query)["head"]
            self.reply(self.server.pulls)
            return
        page = int(self.path.rpartition("page=")[2])
        self.reply(self.server.comments[100 * (page - 1) : 100 * page])

    def do_POST(self) -> None:
        comment = {"id": len(self.server.comments) + 1, **self.data()}
        self.server.comments.append(comment)
        self.reply(comment)

    def do_PATCH(self) -> None:
        number = int(self.path.rpartition("/")[2])
        self.server.comments[number - 1].update(self.data())
        self.reply({})

    def data(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, data: object) -> None:
        self.server.calls.append(self.command)
        assert self.path.startswith(("/repos/me/mine/issues/", "/repos/me/mine/pulls?"))
        assert self.headers["Authorization"] == "Bearer token"
        self.send_response(self.server.refuse or 200)
        self.end_headers()
        self.wfile.write(json.dumps(data).encode())

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def github() -> Iterator[GitHub]:
    server = GitHub()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def comment(github: GitHub, tmp_path: Path):
    """Returns a function: a summary -> the line that comment.py prints."""
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"pull_request": {"number": 7}}))

    def comment(text: str, **environment: str) -> str:
        summary = tmp_path / "summary.md"
        summary.write_text(text, encoding="utf-8")
        known = {
            "GITHUB_API_URL": f"http://127.0.0.1:{github.server_address[1]}",
            "GITHUB_EVENT_PATH": str(event),
            "GITHUB_REPOSITORY": "me/mine",
            "GITHUB_TOKEN": "token",
        }
        done = subprocess.run(
            [sys.executable, SCRIPTS / "comment.py", summary],
            env=os.environ | known | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    return comment


FAILED, PASSED = "### detcheck: ❌ fail\nwhy\n", "### detcheck: ✅ pass\n"


def test_there_is_one_comment_and_it_changes_only_if_the_verdict_does(comment, github) -> None:
    assert comment(PASSED) == "The verdict is pass: no comment is needed."
    assert comment(FAILED) == "The verdict was written as a comment."
    assert comment(FAILED) == "The comment is up to date."
    assert comment(PASSED) == "The comment was updated."
    assert len(github.comments) == 1
    assert "✅ pass" in github.comments[0]["body"]
    assert github.calls.count("POST") == github.calls.count("PATCH") == 1


@pytest.mark.sweep
def test_it_is_found_among_many(comment, github) -> None:
    github.comments = [{"id": n, "body": f"other {n}"} for n in range(1, 151)]
    assert comment(FAILED) == "The verdict was written as a comment."
    assert comment(FAILED) == "The comment is up to date."


@few("status", [401, 403, 404, 500])
def test_a_comment_that_may_not_be_written_fails_no_job(comment, github, status) -> None:
    github.refuse = status
    sentence = comment(FAILED)
    assert f"HTTP {status}" in sentence
    assert ("permission pull-requests: write" in sentence) == (status != 500)


def test_a_reply_that_is_no_json_fails_no_job(comment, github, monkeypatch) -> None:
    monkeypatch.setattr(Handler, "reply", lambda self, _data: _html(self))
    assert comment(FAILED).startswith("The comment could not be written (JSONDecodeError")


def _html(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"<html>a proxy")


def test_a_fork_that_was_removed_fails_no_job(comment, tmp_path) -> None:
    event = tmp_path / "run.json"
    event.write_text(json.dumps({"workflow_run": {"head_repository": None, "head_branch": "b"}}))
    sentence = comment(FAILED, GITHUB_EVENT_PATH=str(event))
    assert sentence.startswith("The event names no repository of the commit that was measured")
    assert "Error" not in sentence


def test_a_reply_of_another_form_is_a_plain_sentence(comment, github) -> None:
    github.comments = ["no object"]  # type: ignore[list-item]
    sentence = comment(FAILED)
    assert sentence.startswith("The comment could not be written: the event, or GitHub's reply,")
    assert "Error" not in sentence


@pytest.mark.sweep
def test_each_use_with_a_name_has_a_comment_of_its_own(comment, github) -> None:
    names = ("", "cpu", "cpu-2")
    for name in names * 2:
        comment(FAILED, DETCHECK_NAME=name)
    headings = [body["body"].splitlines()[1] for body in github.comments]
    assert headings == [f"### detcheck{name and ' ' + name}: ❌ fail" for name in names]
    assert comment(PASSED, DETCHECK_NAME="cpu") == "The comment was updated."
    assert ["❌" in each["body"] for each in github.comments] == [True, False, True]


@few("name", ["-->", "../x", "a b", ".", "$(id)", "a\nb"], every=5)
def test_a_name_that_is_no_name_is_refused(comment, check, github, tmp_path, name) -> None:
    assert comment(FAILED, DETCHECK_NAME=name).startswith("The input name must be letters")
    code, outputs, printed = check(DETCHECK_NAME=name)
    assert (code, outputs) == (2, "")
    assert printed.startswith("::error title=detcheck::name must be letters")
    assert github.calls == []
    assert not (tmp_path / "results").exists()


def test_a_long_summary_is_cut_at_a_line_and_says_so(comment, github) -> None:
    comment(FAILED + "a line of it\n" * 9000)
    body = github.comments[0]["body"]
    assert len(body) < 65_536
    assert body.rstrip().splitlines()[-3:] == [
        "a line of it",
        "",
        "… cut off here: the job's summary has the rest.",
    ]


def test_outside_of_a_pull_request_there_is_none(comment, tmp_path) -> None:
    assert "no pull request" in comment(FAILED, GITHUB_EVENT_PATH=str(tmp_path / "none"))


@pytest.fixture
def check(tmp_path: Path):
    """Returns a function: inputs of the action -> exit code, outputs, printed text."""
    program = tmp_path / "bin/detcheck"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m detcheck "$@"\n', encoding="utf-8")
    program.chmod(0o755)

    def check(**inputs: str) -> tuple[int, str, str]:
        outputs = tmp_path / "outputs"
        outputs.write_text("")
        known = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "GITHUB_OUTPUT": str(outputs),
        }
        done = subprocess.run(
            ["bash", SCRIPTS / "check.sh"],
            env=os.environ | known | inputs,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, outputs.read_text().strip(), done.stdout + done.stderr

    return check


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("faults", "completions", "inputs", "code", "verdict"),
    [
        ({}, 40, {}, 0, "pass"),
        ({"flip_at": 3}, 40, {}, 1, "fail"),
        ({}, 9, {}, 3, "inconclusive"),
        ({}, 9, {"DETCHECK_FAIL_ON_INCONCLUSIVE": "false"}, 0, "inconclusive"),
        ({}, 40, {"DETCHECK_BUDGET": "0.001s"}, 3, "inconclusive"),
        ({"flip_at": 3}, 40, {"DETCHECK_NAME": "other"}, 1, "fail"),
    ],
)
def test_the_verdict_is_the_steps_output(
    check, tmp_path, faults, completions, inputs, code, verdict
):
    with serve(Faults(**QUICK | faults)) as served:
        text = FILE.format(completions=completions, url=served.url)
        (tmp_path / "my file.toml").write_text(text, encoding="utf-8")
        result = check(DETCHECK_CONFIG="my file.toml", **inputs)
    assert result[:2] == (code, f"verdict={verdict}"), result
    name = inputs.get("DETCHECK_NAME")
    folder = f"results/ci-{name}" if name else "results/ci"
    assert [path.as_posix() for path in tmp_path.glob("results/*")] == [f"{tmp_path}/{folder}"]
    for file in ("junit.xml", "detcheck.sarif", "summary.md", "run/report.html"):
        assert (tmp_path / folder / file).exists()
    assert (f"the artifact detcheck-{name} show" in result[2]) == (name is not None)


def test_without_a_file_the_step_fails_and_has_no_verdict(check) -> None:
    code, outputs, printed = check()
    assert (code, outputs) == (2, "verdict=")
    assert "There is no experiment file" in printed


FORK = {"head": {"sha": "abc"}, "number": 7}


@pytest.mark.parametrize(
    ("pulls", "words"),
    [
        ([{"head": {"sha": "old"}, "number": 3}, FORK], "was written as a comment"),
        ([{"head": {"sha": "old"}, "number": 3}], "no pull request"),
        ([], "no pull request"),
    ],
)
def test_a_forks_pull_request_is_found_by_its_commit(
    comment, github, tmp_path, pulls, words
) -> None:
    github.pulls = pulls
    run = {
        "head_sha": "abc",
        "head_branch": "my fix",
        "head_repository": {"owner": {"login": "someone"}},
    }
    event = tmp_path / "run.json"
    event.write_text(json.dumps({"workflow_run": run}))
    assert words in comment(f"{FAILED}@everyone", GITHUB_EVENT_PATH=str(event))
    assert github.asked == ["someone:my fix"]
    assert [c["body"] for c in github.comments if "@everyone" in c["body"]] == []
    assert len(github.comments) == (FORK in pulls)


@pytest.mark.sweep
def test_another_run_with_the_same_verdict_leaves_the_comment(comment, github) -> None:
    summary = "### detcheck: ❌ fail\nwhy\n| run | {}, less than a minute ago |\n"
    comment(summary.format("run-1"))
    assert comment(summary.format("run-2")) == "The comment is up to date."
    assert comment(summary.format("run-2").replace("why", "worse")) == "The comment was updated."
    assert "run-2" in github.comments[0]["body"]
