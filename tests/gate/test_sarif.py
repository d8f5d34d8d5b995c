"""SARIF logs: valid by the published schema, with one result for each changed prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from sweeps import few

from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.scripted import Planted, ScriptedEngine
from detcheck.gate import Verdict
from detcheck.gate.sarif import artifact_of, sarif, write_sarif
from detcheck.kernels.settings import BATCH_INVARIANT
from detcheck.traffic import Trial

SCHEMA = Path(__file__).with_name("schemas") / "sarif-2.1.0.json"
BROKEN = ScriptedEngine([Planted(5, 3, kernels=BATCH_INVARIANT, min_batch_size=4)])
HOSTILE = 'Say "\x1b[31m</script>" \u202e and \U0001f642 &amp; \\u0000?'

On = Callable[..., Verdict]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def faults(validator: Draft202012Validator, log: Any) -> list[str]:
    return [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(log)]


@few(
    ("options", "levels"),
    [
        ({}, set()),
        ({"engine": BROKEN}, {"error"}),
        ({"run": {"completions": 9}}, {"warning"}),
        ({"engine": BROKEN, "prompts": (HOSTILE, "Why?")}, {"error"}),
    ],
    every=2,
)
def test_a_log_is_valid(
    options: dict[str, Any], levels: set[str], verdict_on: On, validator: Any, tmp_path: Path
) -> None:
    path = tmp_path / "logs/detcheck.sarif"
    write_sarif(verdict_on(**options), "detcheck.toml", path)
    log = json.loads(path.read_text(encoding="utf-8"))
    assert faults(validator, log) == []
    assert {result["level"] for result in log["runs"][0]["results"]} == levels


@pytest.mark.parametrize(
    "plant",
    [
        lambda log: log["runs"][0]["results"][0].update(level="fatal"),
        lambda log: log["runs"][0]["results"][0]["message"].clear(),
        lambda log: log["runs"][0]["tool"].update(driver={}),
        lambda log: log["runs"][0].update(answers=3),
        lambda log: log.update(version="2.2"),
    ],
)
def test_the_schema_finds_a_planted_fault(plant: Any, verdict_on: On, validator: Any) -> None:
    log = sarif(verdict_on(BROKEN), "detcheck.toml")
    plant(log)
    assert faults(validator, log)


class BrokenForOne(ScriptedEngine):
    """As `BROKEN`, for the prompt "How?" only."""

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        asked = trial.requests[0].prompt
        return (BROKEN if asked == "How?" else ScriptedEngine()).run_trial(trial, on_tokens)


@pytest.mark.parametrize(("engine", "changed"), [(BrokenForOne(), {1}), (BROKEN, {0, 1, 2})])
def test_each_changed_prompt_has_a_result_of_its_own(
    engine: ScriptedEngine, changed: set[int], verdict_on: On
) -> None:
    run = sarif(verdict_on(engine, prompts=("Why?", "How?", "When?")), "detcheck.toml")["runs"][0]
    identities = [json.dumps(result["partialFingerprints"]) for result in run["results"]]
    assert len(identities) == len(set(identities))
    prompts = {result["partialFingerprints"]["prompt/v1"] for result in run["results"]}
    assert prompts == {f"{index}/{BATCH_INVARIANT}" for index in changed}
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_results_are_told_apart_by_the_fingerprint_that_github_reads(verdict_on: On) -> None:
    """It hashes the line of the location otherwise, and all results point to one line."""

    def hashes(*prompts: str) -> dict[str, str]:
        results = sarif(verdict_on(BROKEN, prompts=prompts), "detcheck.toml")["runs"][0]["results"]
        found = [result["partialFingerprints"] for result in results]
        return {each["primaryLocationLineHash"]: each["prompt/v1"] for each in found}

    before, after = hashes("Why?", "How?"), hashes("New?", "Why?", "How?")
    assert (len(before), len(after)) == (2, 3)
    assert before.keys() < after.keys(), "a prompt that was added changes no identity"


def test_a_result_points_to_its_prompts_line(verdict_on: On, validator: Any) -> None:
    verdict = verdict_on(BROKEN, prompts=("Why?", "How?", "When?"))
    places = {"How?": ("prompts%20of%20us.txt", 7), "Why?": ("detcheck.toml", 3)}
    log = sarif(verdict, "detcheck.toml", places)
    assert faults(validator, log) == []
    found = {}
    for result in log["runs"][0]["results"]:
        (location,) = (each["physicalLocation"] for each in result["locations"])
        place = location["artifactLocation"]["uri"], location["region"]["startLine"]
        found[result["partialFingerprints"]["prompt/v1"].partition("/")[0]] = place
    assert found == {"0": places["Why?"], "1": places["How?"], "2": ("detcheck.toml", 1)}


def test_every_rule_has_the_texts_that_github_shows(verdict_on: On) -> None:
    (rule,) = sarif(verdict_on(BROKEN), "detcheck.toml")["runs"][0]["tool"]["driver"]["rules"]
    for name in ("shortDescription", "fullDescription", "help"):
        assert rule[name]["text"]


@pytest.mark.parametrize(
    ("file", "here", "uri"),
    [
        ("detcheck.toml", "", "detcheck.toml"),
        ("a b/my#1.toml", "", "a%20b/my%231.toml"),
        ("../detcheck.toml", "sub", "detcheck.toml"),
        ("mine.toml", "sub", "sub/mine.toml"),
    ],
)
def test_an_artifact_is_a_uri_below_the_repository(
    file: str, here: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / here)
    assert artifact_of(Path(file)) == uri
