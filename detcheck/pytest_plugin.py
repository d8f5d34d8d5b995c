"""The pytest plugin: a marker and a fixture that measure and judge, and one assertion for kernels.

    @pytest.mark.determinism(prompts=["Why is the sky blue?"], batch_sizes=[1, 4], completions=40)
    def test_answers_do_not_depend_on_the_load(detcheck):
        assert detcheck.verdict.judged.comparisons >= 20

    def test_my_kernel(detcheck):
        detcheck.assert_batch_invariant(my_linear, torch.randn(64, 512))

The measurement happens before the test's body. A test whose verdict is `fail` fails; one whose
verdict is `inconclusive` is reported as inconclusive, never as passed. This module imports nothing
of detcheck until a test uses it.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from detcheck.analysis.results import Group, TreeNode
    from detcheck.gate.options import GateOptions
    from detcheck.gate.verdict import Verdict
    from detcheck.rundir import Run
    from detcheck.targets import Target

MARKER = "determinism"
INCONCLUSIVE = "inconclusive"
ACCEPTED = "detcheck_accepted"
"""Property of a test's report: what --detcheck-update accepted, in words."""
BASELINES = "detcheck_baselines"
"""Folder beside a test file that holds the accepted answers of its tests."""
LONGEST_BRANCH = 60
"""Characters that are shown of a branch of the prefix tree."""
DEEPEST_BRANCH = 4
WIDEST_BRANCHING = 4
_MARKER_HELP = (
    f"{MARKER}(prompts=…, batch_sizes=…, target=…, max_distinct=1, …): ask a model under varying "
    "load before the test, and judge its answers; takes every field of detcheck.Experiment and of "
    "the gate's options, and target=detcheck.InProcess(…), Served(…) or Vllm(…)"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plugin's options."""
    group = parser.getgroup("detcheck", "determinism of language models")
    group.addoption(
        "--detcheck-update",
        action="store_true",
        help="accept the answers of each determinism test as its new baseline",
    )
    kept = "keep each determinism test's run and report in DIR"
    group.addoption("--detcheck-report", metavar="DIR", help=kept)
    group.addoption("--detcheck-skip", action="store_true", help="skip determinism tests")
    group.addoption("--detcheck-only", action="store_true", help="run determinism tests only")
    strict = "fail a determinism test whose verdict is inconclusive"
    group.addoption("--detcheck-strict", action="store_true", help=strict)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", _MARKER_HELP)
    if config.getoption("--detcheck-skip") and config.getoption("--detcheck-only"):
        raise pytest.UsageError("--detcheck-skip and --detcheck-only are both given: choose one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every marked test uses the fixture; leave out the tests that the options exclude."""
    only, skip = config.getoption("--detcheck-only"), config.getoption("--detcheck-skip")
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        marked = item.get_closest_marker(MARKER) is not None
        names = getattr(item, "fixturenames", None)
        if marked and names is not None and "detcheck" not in names:
            names.append("detcheck")
        if marked and skip:
            item.add_marker(pytest.mark.skip(reason="--detcheck-skip"))
        (dropped if only and not marked else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_report_teststatus(
    report: pytest.TestReport | pytest.CollectReport,
) -> tuple[str, str, str] | None:
    """Inconclusive tests have a category of their own in pytest's summary."""
    if not isinstance(report, pytest.TestReport):  # a file that could not be collected
        return None
    if INCONCLUSIVE in dict(report.user_properties) and report.skipped:
        return INCONCLUSIVE, "i", "INCONCLUSIVE"
    return None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List accepted answers, and inconclusive tests with the option that makes them fail."""
    _list_accepted(terminalreporter)
    reports = terminalreporter.stats.get(INCONCLUSIVE, [])
    if not reports:
        return
    terminalreporter.section("inconclusive determinism tests", yellow=True)
    for report in reports:
        terminalreporter.line(f"{report.nodeid}: {dict(report.user_properties)[INCONCLUSIVE]}")
    terminalreporter.line("--detcheck-strict makes these fail.")


def _list_accepted(terminalreporter: Any) -> None:
    """The changes of baselines that --detcheck-update accepted, in words."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    called = [report for report in reports if getattr(report, "when", None) == "call"]
    properties = [found for report in called for found in report.user_properties]
    changes = [text for name, text in properties if name == ACCEPTED]
    if changes:
        terminalreporter.section("accepted as baselines; review and commit")
    for text in changes:
        terminalreporter.line(text)


@dataclass(slots=True)
class Determinism:
    """The value of the `detcheck` fixture."""

    request: pytest.FixtureRequest
    folder: Path
    models: dict[Any, Any] = field(default_factory=dict)
    measured: int = 0
    run: Run | None = None
    """The last run that was measured; None before any."""
    verdict: Verdict | None = None
    """The verdict on it."""

    def check(self, *, target: Target | None = None, **options: Any) -> Verdict:
        """Measure and judge; see the marker for the options.

        Fails the test if the verdict is `fail`. If it is `inconclusive`, the test is reported as
        inconclusive, or fails with --detcheck-strict. Otherwise returns the verdict.
        """
        __tracebackhide__ = True
        from detcheck.errors import DetcheckError

        sentence = ""
        try:
            self._measure_and_judge(target, options)
        except DetcheckError as error:
            sentence = str(error)
        if sentence:
            pytest.fail(f"detcheck: {sentence}", pytrace=False)
        assert self.verdict is not None
        assert self.run is not None
        if self.verdict.value == "fail":
            pytest.fail(_explained(self.verdict, self.run), pytrace=False)
        if self.verdict.value == INCONCLUSIVE:
            self._inconclusive()
        return self.verdict

    def _measure_and_judge(self, target: Target | None, options: Mapping[str, Any]) -> None:
        experiment, gate = _split(options)
        self.run = _measure(experiment, target, self._new_folder(), self.models)
        self.verdict = self._judge(gate)
        _keep_report(self.request, self.run)

    def _new_folder(self) -> Path:
        """The folder of the next run; a run that an earlier session kept there is removed."""
        self.measured += 1
        number = f"-{self.measured}" if self.measured > 1 else ""
        folder = self.folder.with_name(self.folder.name + number)
        if (folder / "run.json").exists():
            shutil.rmtree(folder)
        return folder

    @property
    def assert_batch_invariant(self) -> Callable[..., dict[str, int]]:
        """See `detcheck.assert_batch_invariant`."""
        from detcheck.probes.asserts import assert_batch_invariant

        return assert_batch_invariant

    @property
    def baseline(self) -> Path:
        """The file with the accepted answers of this test, whether or not it exists."""
        inner = self.request.node.nodeid.partition("::")[2].replace("::", ".")
        name = re.sub(r"[^\w.-]+", "_", inner)
        return self.request.path.parent / BASELINES / f"{self.request.path.stem}.{name}.json"

    def _judge(self, options: GateOptions) -> Verdict:
        from detcheck.analysis import analyse
        from detcheck.gate.baseline import read_baseline
        from detcheck.gate.verdict import judge

        assert self.run is not None
        analysis = analyse(self.run)
        kernels = options.kernels_of(self.run.experiment.kernels)
        accepted = None
        if self.request.config.getoption("--detcheck-update"):
            changes = _update(self.baseline, analysis, kernels)
            accept = ((ACCEPTED, f"{self.baseline.name}: {change}") for change in changes)
            self.request.node.user_properties.extend(accept)
        elif self.baseline.exists():
            accepted = read_baseline(self.baseline)
        return judge(analysis, options, baseline=accepted)

    def _inconclusive(self) -> None:
        __tracebackhide__ = True
        assert self.verdict is not None
        assert self.run is not None
        found = next(found for found in self.verdict.findings if found.effect == INCONCLUSIVE)
        reason = self.verdict.reason(found)
        if self.request.config.getoption("--detcheck-strict"):
            pytest.fail(_explained(self.verdict, self.run), pytrace=False)
        self.request.node.user_properties.append((INCONCLUSIVE, reason))
        pytest.skip(f"inconclusive: {reason}")


@pytest.fixture(scope="session")
def _detcheck_models() -> Iterator[dict[Any, Any]]:
    """Models that were loaded in this process, by name and loading options."""
    models: dict[Any, Any] = {}
    yield models
    models.clear()


@pytest.fixture
def detcheck(
    request: pytest.FixtureRequest, tmp_path: Path, _detcheck_models: dict[Any, Any]
) -> Determinism:
    """The verdict of the test's `determinism` marker, and `check` and assertions to call."""
    kept = request.config.getoption("--detcheck-report")
    name = re.sub(r"[^\w.-]+", "_", request.node.nodeid)
    folder = Path(kept) / name if kept else tmp_path / "run"
    return Determinism(request, folder, _detcheck_models)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Measure and judge before the body of a marked test; a failed verdict fails the test."""
    marker = item.get_closest_marker(MARKER)
    given = getattr(item, "funcargs", {}).get("detcheck")
    if marker is not None and isinstance(given, Determinism):
        if marker.args:
            pytest.fail(f"the marker {MARKER} takes keyword arguments only", pytrace=False)
        given.check(**marker.kwargs)
    return (yield)


def _split(options: Mapping[str, Any]) -> tuple[Any, GateOptions]:
    """The experiment and the gate's options that a test names."""
    from detcheck.errors import UsageError
    from detcheck.experiment import Experiment
    from detcheck.gate.options import GateOptions

    gate = set(GateOptions.__struct_fields__) - set(Experiment.__struct_fields__)
    unknown = set(options) - gate - set(Experiment.__struct_fields__)
    if unknown:
        raise UsageError(f"Unknown option `{min(unknown)}` of a determinism test.")
    asked = {name: value for name, value in options.items() if name not in gate}
    return Experiment(**asked), GateOptions(**{k: v for k, v in options.items() if k in gate})


def _measure(experiment: Any, target: Target | None, folder: Path, models: dict[Any, Any]) -> Run:
    from detcheck.runner import run
    from detcheck.targets import InProcess

    target = target or InProcess()
    here = (
        target.traits.ops_visible
    )  # its model is an object of this process, which tests can share
    engine = _engine(target.settle(experiment), target, models) if here else None
    return run(experiment, target, folder, engine=engine)


def _engine(experiment: Any, target: Any, models: dict[Any, Any]) -> Any:
    """The target's engine around a model that earlier tests may have loaded."""
    from importlib import import_module

    from detcheck.models import load

    options = {
        name: getattr(target, name) for name in ("revision", "dtype", "device", "trust_remote_code")
    }
    key = (target.model, *options.values())
    if key not in models:
        models[key] = load(target.model, **options)
    module, _, name = target.factory.partition(":")
    return getattr(import_module(module), name)(models[key], experiment, target)


def _update(path: Path, analysis: Any, kernels: tuple[str, ...]) -> tuple[str, ...]:
    """Accept the answers of a run as the baseline in `path`; returns the changes in words."""
    from detcheck.gate.accept import accept
    from detcheck.gate.baseline import read_baseline, write_baseline

    existing = read_baseline(path) if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    accepted = accept(analysis, kernels, existing)
    write_baseline(accepted.baseline, path)
    return accepted.changes


def _keep_report(request: pytest.FixtureRequest, run: Run) -> None:
    if request.config.getoption("--detcheck-report"):
        from detcheck.analysis import analyse
        from detcheck.report.write import write_report

        write_report(analyse(run), run.path, ("html", "md"))


def _explained(verdict: Verdict, run: Run) -> str:
    """The reasons of the verdict, the tree of answers, and the next command to run."""
    lines = [f"detcheck: {verdict.value}", *(f"  {reason}" for reason in verdict.reasons)]
    worst = [judged.group for judged in verdict.groups if judged.value != "pass"]
    for group in worst[:3]:
        lines += _tree(group)
    lines += ["", f"Next: detcheck report {shlex.quote(str(run.path))}"]
    if run.traits.ops_visible and any(group.divergences for group in worst):
        lines.append(f"      detcheck trace {shlex.quote(str(run.path))}")
    return "\n".join(lines)


def _tree(group: Group) -> Iterator[str]:
    """The prefix tree of the answers to one prompt, a branch a line."""
    from detcheck.text import one_line

    if group.tree is None or len(group.variants) < 2:
        return
    yield ""
    yield f"{group.name}: {group.distinct} different answers in {group.completions} completions"

    def branch(node: TreeNode, depth: int) -> Iterator[str]:
        shown = _shortened(one_line(node.text), begins=depth == 0)
        yield f"  {node.count:>4}× {'  ' * depth}“{shown}”"
        if depth < DEEPEST_BRANCH:
            for child in node.children[:WIDEST_BRANCHING]:
                yield from branch(child, depth + 1)

    yield from branch(group.tree, 0)


def _shortened(text: str, *, begins: bool) -> str:
    """A branch's text; if it is long, its end if all answers begin with it, else its start."""
    if len(text) <= LONGEST_BRANCH:
        return text
    return f"…{text[-LONGEST_BRANCH:]}" if begins else f"{text[:LONGEST_BRANCH]}…"
