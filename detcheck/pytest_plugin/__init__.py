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

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
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
LONGEST_NAME = 100
"""Characters of a file's name that is made of a test's name; a longer one ends in a hash."""
ORDINARY_NAME = re.compile(r"(?:[\w.-]+(?:/|::))*[\w.-]+(?:\[[\w.-]+\])?")
"""Names of tests whose parameters hold letters, digits and `_`, `.`, `-` only."""
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
    lock: Path | None = None
    """File that workers of pytest-xdist share, so that only one of them measures at a time."""
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
            self._fail()
        if self.verdict.value == INCONCLUSIVE:
            self._inconclusive()
        return self.verdict

    def _fail(self) -> None:
        __tracebackhide__ = True
        from detcheck.pytest_plugin.words import explained

        assert self.verdict is not None
        assert self.run is not None
        pytest.fail(explained(self.verdict, self.run), pytrace=False)

    def _measure_and_judge(self, target: Target | None, options: Mapping[str, Any]) -> None:
        from detcheck.pytest_plugin.measuring import measure, split, turn

        experiment, gate = split(options)
        gate = _with_paths(gate, self.request.path.parent, self._updates)
        with turn(self.lock):
            self.run = measure(experiment, target, self._new_folder(), self.models)
            _keep_report(self.request, self.run)
            self.verdict = self._judge(gate)

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
    def _updates(self) -> bool:
        return bool(self.request.config.getoption("--detcheck-update"))

    @property
    def baseline(self) -> Path:
        """The file with the accepted answers of this test, whether or not it exists."""
        inner = self.request.node.nodeid.partition("::")[2].replace("::", ".")
        name = f"{self.request.path.stem}.{_file_name(inner)}.json"
        return self.request.path.parent / BASELINES / name

    def _judge(self, options: GateOptions) -> Verdict:
        """The verdict on the run, held to the marker's baseline, else to the test's own.

        With --detcheck-update the answers are accepted in the place of that.
        """
        from msgspec.structs import replace

        from detcheck.analysis import analyse
        from detcheck.gate.files import accepted_answers
        from detcheck.gate.verdict import judge

        assert self.run is not None
        analysis, file = analyse(self.run), options.baseline or self.baseline
        kernels = options.kernels_of(self.run.experiment.kernels)
        accepted = None
        if self._updates:
            changes = _update(file, analysis, kernels)
            accept = ((ACCEPTED, f"{file.name}: {change}") for change in changes)
            self.request.node.user_properties.extend(accept)
            options = replace(options, baseline=None)  # it holds these very answers now
        elif options.baseline is not None or file.exists():
            accepted = accepted_answers(file, kernels)
        return judge(analysis, options, baseline=accepted)

    def _inconclusive(self) -> None:
        __tracebackhide__ = True
        assert self.verdict is not None
        assert self.run is not None
        found = next(found for found in self.verdict.findings if found.effect == INCONCLUSIVE)
        reason = self.verdict.reason(found)
        if self.request.config.getoption("--detcheck-strict"):
            self._fail()
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
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    _detcheck_models: dict[Any, Any],
) -> Determinism:
    """The verdict of the test's `determinism` marker, and `check` and assertions to call."""
    kept = request.config.getoption("--detcheck-report")
    folder = Path(kept) / _file_name(request.node.nodeid) if kept else tmp_path / "run"
    one_of_several = "PYTEST_XDIST_WORKER" in os.environ
    lock = tmp_path_factory.getbasetemp().parent / "detcheck.lock" if one_of_several else None
    return Determinism(request, folder, _detcheck_models, lock)


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


def _file_name(test: str) -> str:
    """The name of a test as that of a file or folder.

    It ends in a hash if it is long, or if tests of different names could share it otherwise.
    """
    plain = re.sub(r"[^\w.-]+", "_", test)
    if len(plain) <= LONGEST_NAME and ORDINARY_NAME.fullmatch(test):
        return plain
    return f"{plain[:LONGEST_NAME]}-{hashlib.sha256(test.encode()).hexdigest()[:8]}"


def _with_paths(options: GateOptions, folder: Path, updates: bool) -> GateOptions:
    """The options with the paths that they name taken from `folder`, unless they are absolute.

    Raises UsageError if there is nothing at such a path; an update may write a baseline there.
    """
    from msgspec.structs import replace

    from detcheck.errors import UsageError

    found = {name: getattr(options, name) for name in ("baseline", "control")}
    paths = {name: folder / path for name, path in found.items() if path is not None}
    for name, path in paths.items():
        if not path.exists() and not (updates and name == "baseline"):
            advice = (
                "check it, or write it by --detcheck-update" if name == "baseline" else "check it"
            )
            raise UsageError(f"There is nothing at the path of `{name}`, {path}: {advice}.")
    return replace(options, **paths)


def _update(path: Path, analysis: Any, kernels: tuple[str, ...]) -> tuple[str, ...]:
    """Accept the answers of a run as the baseline in `path`; returns the changes in words."""
    from detcheck.errors import UsageError
    from detcheck.gate.accept import accept
    from detcheck.gate.baseline import read_baseline, write_baseline

    if path.is_dir():
        raise UsageError(f"{path} is a run, which --detcheck-update does not change: name a file.")
    accepted = accept(analysis, kernels, read_baseline(path) if path.exists() else None)
    write_baseline(accepted.baseline, path)
    return accepted.changes


def _keep_report(request: pytest.FixtureRequest, run: Run) -> None:
    if request.config.getoption("--detcheck-report"):
        from detcheck.analysis import analyse
        from detcheck.report.write import write_report

        write_report(analyse(run), run.path, ("html", "md"))
