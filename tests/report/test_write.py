"""`detcheck report` through the real program: what it writes, prints and refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from timing import child_seconds

from detcheck.analysis.results import Analysis
from detcheck.cli.app import run_program
from detcheck.errors import StorageError, UsageError
from detcheck.experiment import Experiment
from detcheck.prompts import ChatMessage, PromptItem, read_prompts
from detcheck.report.reproduce import PROMPTS_FILE, command, prompts_file
from detcheck.report.write import parse_formats, write_report
from detcheck.targets import InProcess

from .suite import suite_of

PROGRAM = "import sys; from detcheck.cli.app import main; main()"


def report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "report", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.sweep
def test_it_prints_every_file_that_it_writes(story: Analysis, tmp_path: Path) -> None:
    done = report(story.run.path, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert sorted(map(Path, done.stdout.split())) == written
    names = {path.name for path in written}
    assert {"report.html", "report.md"} <= names
    assert {"conditions.csv", "variants.csv", "branchings.csv"} <= names
    assert {"prefix_tree.svg", "agreement.svg"} <= names


def test_it_writes_into_the_run_by_default(story: Analysis) -> None:
    assert run_program(["report", str(story.run.path), "--format", "csv"]) == 0
    assert (story.run.path / "variants.csv").exists()


def test_several_runs_get_a_folder_each(story: Analysis, silent: Analysis, tmp_path: Path) -> None:
    runs = (str(story.run.path), str(silent.run.path))
    assert run_program(["report", *runs, "-o", str(tmp_path), "--format", "csv"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["silent", "story"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "no run directory missing"),
        ([".", "--format", "pdf"], "Unknown format 'pdf'"),
        ([".", "--format", ","], "at least one format"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_reported(story: Analysis, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another `out`"):
        write_report(story, tmp_path / "file" / "below", ["csv"])


def test_formats_are_listed_once() -> None:
    assert parse_formats(" md, html,md") == ("md", "html")
    with pytest.raises(UsageError):
        parse_formats("")


@pytest.mark.sweep
def test_a_thousand_completions_take_under_three_seconds(eighty: Analysis, tmp_path: Path) -> None:
    start = child_seconds()
    assert report(eighty.run.path, "-o", tmp_path).returncode == 0
    assert child_seconds() - start < 3


@pytest.mark.sweep
def test_no_torch_is_imported_and_pandas_only_for_csv(story: Analysis, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from detcheck.cli.report import report_command; "
        "assert not {'matplotlib', 'jinja2', 'numpy'} & set(sys.modules); "
        "report_command([Path(sys.argv[1])], format='html,md', out=Path(sys.argv[2])); "
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules); "
        "report_command([Path(sys.argv[1])], format='csv', out=Path(sys.argv[2])); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, story.run.path, tmp_path], check=True)


def test_the_command_is_read_back_by_a_shell() -> None:
    prompts = ('it\'s "here" $HOME `x`\nnext', "-dash")
    experiment = Experiment(prompts=prompts, completions=9, batch_sizes=(1, 2), temperature=0.5)
    text = command(experiment, InProcess(model="my models/one"))
    script = text.replace("detcheck run", "printf '%s\\0'", 1)
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    arguments = done.stdout.decode().split("\0")
    assert arguments[:4] == ["my models/one", "-p", prompts[0], "--prompt=-dash"]
    for flag, value in (("-n", "9"), ("-b", "1,2"), ("--temperature", "0.5")):
        assert arguments[arguments.index(flag) + 1] == value


ITEMS = (
    PromptItem(id="sea", answer="blue", until=("\n",), fields={"level": 3}),
    PromptItem(
        answer="so", messages=(ChatMessage("system", "Be short."), ChatMessage("user", "Why?"))
    ),
)


@pytest.mark.parametrize(
    "experiment",
    [
        Experiment(prompts=tuple(f'Question "{n}" é\n{n}?' for n in range(1000))),
        Experiment(prompts=("Why? " * 2000,)),
        Experiment(prompts=("What is the sea?", "system: Be short.\nuser: Why?"), items=ITEMS),
    ],
)
def test_prompts_that_are_too_long_for_the_command_are_in_a_file(
    experiment: Experiment, tmp_path: Path
) -> None:
    shown = command(experiment, InProcess())
    assert len(shown) < 1000
    assert f"--prompts {PROMPTS_FILE}" in shown
    text = prompts_file(experiment)
    assert text is not None
    (tmp_path / PROMPTS_FILE).write_text(text, encoding="utf-8")
    again = read_prompts(tmp_path / PROMPTS_FILE)
    assert again.prompts == experiment.prompts
    assert again.items == experiment.items


def test_few_prompts_need_no_file(story: Analysis, tmp_path: Path) -> None:
    assert prompts_file(story.run.experiment) is None
    write_report(story, tmp_path, ["html", "md"])
    assert not (tmp_path / PROMPTS_FILE).exists()


@pytest.mark.sweep
def test_the_file_of_many_prompts_is_written_and_linked(story: Analysis, tmp_path: Path) -> None:
    write_report(suite_of(story, 30), tmp_path, ["html", "md"])
    assert len((tmp_path / PROMPTS_FILE).read_text("utf-8").splitlines()) == 30
    assert f'href="{PROMPTS_FILE}"' in (tmp_path / "report.html").read_text("utf-8")
    assert f"--prompts {PROMPTS_FILE}" in (tmp_path / "report.md").read_text("utf-8")
