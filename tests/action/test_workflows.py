"""The action's files and the documented workflows: their inputs, and names that differ."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def test_the_actions_inputs_reach_its_scripts() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for name in action["inputs"]:
        assert f"inputs.{name}" in text, name
    for step in action["runs"]["steps"]:
        run = step.get("run", "")
        assert "${{" not in run, "an input in a shell command could be read as code"
        assert "uses" in step or step["shell"] == "bash"


def test_two_uses_of_the_action_share_no_artifact_folder_or_comment() -> None:
    """GitHub's expression is false for an empty name, and is written as an empty text then."""
    steps = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"]
    upload = steps[-1]["with"]
    suffix = "${{ inputs.name && format('-{0}', inputs.name) }}"
    assert (upload["name"], upload["path"]) == (f"detcheck{suffix}", f"results/ci{suffix}")
    scripts = [step for step in steps if "GITHUB_ACTION_PATH" in step.get("run", "")]
    named = [step["name"] for step in scripts if "DETCHECK_NAME" in step.get("env", {})]
    assert named == ["Measure the base", "Measure and judge", "Comment"]
    assert 'results/ci${DETCHECK_NAME:+-$DETCHECK_NAME}/summary.md"' in scripts[-1]["run"]


def workflows() -> dict[str, str]:
    """The workflows of the documentation, by name."""
    page = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    texts = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = {yaml.safe_load(text).get("name"): text for text in texts}
    return {name: text for name, text in found.items() if name}


def zizmor(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Lint one workflow, as `make lint` lints those of this repository."""
    (folder / ".github/workflows").mkdir(parents=True, exist_ok=True)
    file = folder / ".github/workflows/workflow.yml"
    file.write_text(text, encoding="utf-8")
    options = ["--offline", "-q", "--no-progress", "--config", ROOT / ".github/zizmor.yml"]
    return subprocess.run(
        [Path(sys.executable).with_name("zizmor"), *options, file],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["determinism", "determinism-comment"])
def test_a_documented_workflow_is_clean(name: str, tmp_path: Path) -> None:
    done = zizmor(tmp_path, workflows()[name])
    assert done.returncode == 0, done.stdout + done.stderr


JOB_PERMISSIONS = """\
    permissions:
      actions: read          # to download the artifact
      pull-requests: write   # to write the comment
"""


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("determinism", "on: [pull_request]", "on: [pull_request_target]"),
        ("determinism", "        with:\n          persist-credentials: false\n", ""),
        ("determinism-comment", " # zizmor: ignore[dangerous-triggers]", " #"),
        ("determinism-comment", JOB_PERMISSIONS, "    permissions: write-all\n"),
    ],
)
def test_a_planted_weakness_is_found(name: str, before: str, after: str, tmp_path: Path) -> None:
    text = workflows()[name]
    assert before in text
    assert zizmor(tmp_path, text.replace(before, after)).returncode != 0


def test_the_documented_split_keeps_a_forks_code_away_from_the_token() -> None:
    measuring = yaml.safe_load(workflows()["determinism"])
    commenting = yaml.safe_load(workflows()["determinism-comment"])
    (trigger,) = commenting[True].items()  # YAML reads the key `on` as true
    assert trigger == ("workflow_run", {"workflows": [measuring["name"]], "types": ["completed"]})
    job = commenting["jobs"]["comment"]
    assert job["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert not any("checkout" in step.get("uses", "") or "run" in step for step in job["steps"])
    download, comment = job["steps"]
    artifact = next(
        step["with"]
        for step in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
        if "upload-artifact" in step.get("uses", "")
    )
    assert download["with"]["name"] == artifact["name"].partition("${{")[0]
    assert comment["with"]["summary"] == f"{download['with']['path']}/summary.md"
    folder = comment["uses"].removeprefix("detcheck/detcheck/").partition("@")[0]
    action = yaml.safe_load((ROOT / folder / "action.yml").read_text(encoding="utf-8"))
    assert set(comment["with"]) <= set(action["inputs"])
    (step,) = action["runs"]["steps"]
    assert "${{" not in step["run"]
    assert (ROOT / folder / "../comment.py").exists()
    assert "/../comment.py" in step["run"]


def test_the_page_names_every_input_of_the_action() -> None:
    page = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    table = page[page.index("| input | meaning |") : page.index("The output `verdict`")]
    assert set(re.findall(r"`([a-z-]+)`", table)) >= set(action["inputs"])
    used = yaml.safe_load(workflows()["determinism"])["jobs"]["detcheck"]["steps"][-1]["with"]
    assert set(used) <= set(action["inputs"])
    commands = (ROOT / ".github/action/check.sh").read_text(encoding="utf-8")
    for name in ("config", "endpoint", "baseline", "budget"):
        assert f'--{name} "$DETCHECK_{name.upper()}"' in commands
