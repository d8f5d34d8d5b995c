"""The README, the pages and the files of the repository around them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from blocks import FENCE, ROOT

import detcheck

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)\s]+)\)")
LOADED = re.compile(
    r"<(script|img|iframe)\b[^>]*\bsrc=\"?https?:|<link\b[^>]*rel=\"?stylesheet\"?[^>]*https?:"
)
"""What a page loads from another host."""
MAX_WORDS = 1200


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MAX_WORDS


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    """mkdocs checks the links of its own pages; these are outside of them."""
    text = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if not target.startswith(("https://", "#")):
            path, _, anchor = target.partition("#")
            assert (ROOT / path).is_file(), target
            assert not anchor or anchor in anchors(ROOT / path), target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("tag", "loads"),
    [
        ('<script src="https://a.b/c.js">', True),
        ('<link rel="stylesheet" href="https://a.b/c.css">', True),
        ('<script src="assets/c.js">', False),
        ('<a href="https://a.b">', False),
    ],
)
def test_what_a_page_loads_from_other_hosts_is_noticed(tag: str, *, loads: bool) -> None:
    assert bool(LOADED.search(tag)) is loads


@pytest.mark.slow
def test_the_site_builds_in_strict_mode_and_asks_no_other_host(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={"NO_MKDOCS_2_WARNING": "1", "PATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*\bsrc=\"?https?:|<link rel=\"?stylesheet[^>]*https?:"
    )
    for page in (tmp_path / "site").rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page.name
        assert "data-md-component=source" not in page.read_text(encoding="utf-8").replace('"', "")


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "detcheck.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", detcheck.__version__)


def test_the_workflow_calls_the_makefile_for_each_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    runs = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert {"make lint", "make test"} <= set(runs)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    classified = [line for line in project["classifiers"] if "Python :: 3." in line]
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert [line.rpartition(" ")[2] for line in classified] == versions


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")))
def test_an_issue_template_is_a_form(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name != "config.yml":
        assert {"name", "description", "body"} <= set(form)
        assert all(part["type"] in {"markdown", "textarea", "input"} for part in form["body"])
