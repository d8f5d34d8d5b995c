"""Runs and analyses that the tests of the report share; each is made once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from detcheck.analysis import Analysis, analyse
from detcheck.experiment import Experiment
from detcheck.targets import InProcess

from . import hostile
from .browser import Page, find_chromium, open_browser
from .sample import LIGHTHOUSE, Script, many_answers, write_run

STORY = "Write a short story about a lighthouse keeper."


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of a browser that all tests share."""
    binary = find_chromium()
    if binary is None:
        message = "Chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(message)
        pytest.skip(message)
    with open_browser(binary, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def story(folder: Path) -> Analysis:
    """Six variants under stock kernels, one under batch-invariant ones."""
    experiment = Experiment(prompts=(STORY,), completions=48)
    target = InProcess(dtype="bfloat16")
    return analyse(write_run(folder / "story", [Script(LIGHTHOUSE)], experiment, target))


@pytest.fixture(scope="session")
def eighty(folder: Path) -> Analysis:
    """A thousand completions of each kernels setting and dozens of variants."""
    experiment = Experiment(completions=1000, batch_sizes=(1, 2, 4, 8, 16, 32))
    return analyse(write_run(folder / "eighty", [Script(many_answers(80))], experiment))


@pytest.fixture(scope="session")
def silent(folder: Path) -> Analysis:
    """One answer under all kernels; the log-probabilities of stock move with the load."""
    return analyse(write_run(folder / "silent", [Script(LIGHTHOUSE[:1])], Experiment()))


@pytest.fixture(scope="session")
def dead(silent: Analysis) -> Analysis:
    """A control of which not even a bit of its log-probabilities moved."""
    groups = tuple(replace(group, logprobs_differ=0) for group in silent.groups)
    return replace(silent, groups=groups)


@pytest.fixture(scope="session")
def texts(folder: Path) -> Analysis:
    """Stock kernels alone, from a server that gives no token ids."""
    script = Script(LIGHTHOUSE, tokens=False)
    return analyse(write_run(folder / "texts", [script], Experiment(kernels=("stock",))))


@pytest.fixture(scope="session")
def several(folder: Path) -> Analysis:
    """Three prompts: one that varies, one with confident flips, one that does not vary."""
    scripts = [Script(LIGHTHOUSE), Script(many_answers(20), gap=2.0), Script(LIGHTHOUSE[:1])]
    experiment = Experiment(prompts=(STORY, "a [bold]prompt[/bold]", "c"), completions=96)
    return analyse(write_run(folder / "several", scripts, experiment))


@pytest.fixture(scope="session")
def ablation(folder: Path) -> Analysis:
    """More kernels settings than a legend can name."""
    subsets = ("matmul", "attention", "norm+softmax", "matmul+attention+norm")
    kernels = ("stock", "batch-invariant", "fully-invariant")
    kernels += tuple(f"batch-invariant:{subset}" for subset in subsets)
    experiment = Experiment(prompts=(STORY,), completions=48, kernels=kernels)
    return analyse(write_run(folder / "ablation", [Script(many_answers(30))], experiment))


@pytest.fixture(scope="session")
def seeded(folder: Path) -> Analysis:
    """Four wanted samples; under stock kernels the load adds answers to each."""
    experiment = Experiment(
        prompts=(STORY,), completions=24, batch_sizes=(1, 4, 8), temperature=0.7, seeds=(0, 1, 2, 3)
    )
    return analyse(write_run(folder / "seeded", [Script(LIGHTHOUSE)], experiment))


@pytest.fixture(scope="session")
def attacked(folder: Path) -> Analysis:
    """Every hostile answer, with and without tokens, asked for by a hostile prompt."""
    prompts = (hostile.PROMPT, "text \ud800 only")
    experiment = Experiment(prompts=prompts, completions=400, batch_sizes=(1, 20))
    target = InProcess(model=hostile.MODEL)
    scripts = [Script(hostile.ANSWERS), Script(hostile.ANSWERS, tokens=False)]
    return analyse(write_run(folder / "attacked", scripts, experiment, target))


@pytest.fixture(scope="session")
def prefixes(folder: Path) -> Analysis:
    """Answers of which one is the beginning of the other."""
    answers = ("The lamp burned", "The lamp burned all night", "The lamp burned all night long")
    experiment = Experiment(completions=48)
    return analyse(write_run(folder / "prefixes", [Script(answers)], experiment))
