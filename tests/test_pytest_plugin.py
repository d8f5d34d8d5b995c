"""The pytest plugin, used as in somebody's own repository, against a real local server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import metadata
from itertools import pairwise

import pytest
from servers.faults import Faults
from servers.running import serve

from detcheck.rundir import load

INSTALLED = any(
    entry.value == "detcheck.pytest_plugin" for entry in metadata.entry_points(group="pytest11")
)
PLUGIN = () if INSTALLED else ("-p", "detcheck.pytest_plugin")
QUICK = {"quiet_s": 0.01, "answer_tokens": 6}
PATIENT = {"quiet_s": 0.3}
"""Its batches form on a busy machine too: it waits for requests that are late."""
TEST = """
    import pytest
    from detcheck import Served

    @pytest.mark.determinism(
        target=Served(endpoints=({url!r},)), batch_sizes=(1, 8), completions={completions},
        max_new_tokens=6, {more}
    )
    def test_the_server(detcheck):
        assert detcheck.verdict.value == "pass"
        assert detcheck.run.conditions
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Iterator[Run]:
    """Returns a function: faults of a server, options of pytest -> the result of one test."""
    with ExitStack() as held:

        def run(
            faults: dict, *options: str, completions: int = 40, more: str = "", test: str = TEST
        ) -> pytest.RunResult:
            served = held.enter_context(serve(Faults(**QUICK | faults)))
            pytester.makepyfile(test.format(url=served.url, completions=completions, more=more))
            return pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider", *options)

        yield run


def test_a_sound_server_passes(run: Run) -> None:
    run({}).assert_outcomes(passed=1)


def test_a_planted_difference_fails_and_says_where(run: Run) -> None:
    result = run({"flip_at": 3, "flip_above": 1})
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*detcheck: fail*", "*different answers in*", "*×*", "*Next: detcheck report *"]
    )


def test_too_few_comparisons_are_inconclusive_and_never_passed(run: Run) -> None:
    result = run(PATIENT, completions=9)
    outcomes = result.parseoutcomes()
    assert (outcomes["inconclusive"], outcomes.get("passed")) == (1, None)
    result.stdout.fnmatch_lines(["*inconclusive determinism tests*", "*comparisons*"])


def test_strict_makes_inconclusive_fail(run: Run) -> None:
    result = run(PATIENT, "--detcheck-strict", completions=9)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*detcheck: inconclusive*"])


@pytest.mark.sweep
def test_a_baseline_is_accepted_and_then_held(run: Run, pytester: pytest.Pytester) -> None:
    run({}, "--detcheck-update").assert_outcomes(passed=1)
    (baseline,) = pytester.path.glob("detcheck_baselines/*.json")
    assert baseline.stat().st_size
    run({}).assert_outcomes(passed=1)
    changed = run({"flip_at": 2, "flip_above": 0})
    changed.assert_outcomes(failed=1)
    changed.stdout.fnmatch_lines(["*baseline*"])
    run({"flip_at": 2, "flip_above": 0}, "--detcheck-update").assert_outcomes(passed=1)
    run({"flip_at": 2, "flip_above": 0}).assert_outcomes(passed=1)


@pytest.mark.sweep
def test_an_update_shows_in_words_what_it_accepts(run: Run) -> None:
    new = run({}, "--detcheck-update")
    new.stdout.fnmatch_lines(["*accepted as baselines*", "*.test_the_server.json: *new, 1 answer*"])
    changed = run({"flip_at": 2, "flip_above": 0}, "--detcheck-update")
    changed.stdout.fnmatch_lines(["*.test_the_server.json: *they diverge at token 2*"])
    again = run({"flip_at": 2, "flip_above": 0}, "--detcheck-update")
    assert "accepted as baselines" not in str(again.stdout)


def test_branches_are_shown_where_they_part(run: Run) -> None:
    test = TEST.replace("max_new_tokens=6", "max_new_tokens=40")
    long = run({"flip_at": 3, "answer_tokens": 40}, test=test)
    long.assert_outcomes(failed=1)
    # With `CI` set, pytest repeats the whole message in its summary: the first one is the failure.
    tree = next(index for index, line in enumerate(long.outlines) if "different answers in" in line)
    sentence = next(line for line in long.outlines if "the first divergence is at" in line)
    ways = re.search(r'": "\s*(\S+).*" / "\s*(\S+)', sentence).groups()
    branches = long.outlines[tree + 2 : tree + 4]
    assert all(branch.endswith("…”") for branch in branches)
    assert {branch.split("“")[1].split()[0] for branch in branches} == set(ways)


@pytest.mark.sweep
def test_a_report_is_kept_where_it_is_asked_for(run: Run, pytester: pytest.Pytester) -> None:
    run({}, "--detcheck-report", "kept").assert_outcomes(passed=1)
    assert len(list(pytester.path.glob("kept/*/report.html"))) == 1
    assert len(list(pytester.path.glob("kept/*/run.json"))) == 1


@pytest.mark.sweep
def test_a_kept_report_is_replaced_and_each_run_of_a_test_has_its_own(
    run: Run, pytester: pytest.Pytester
) -> None:
    once_more = "        detcheck.check(target=detcheck.run.target, batch_sizes=(1, 8), "
    once_more += "completions=40, max_new_tokens=6)\n"
    for _ in range(2):
        result = run({}, "--detcheck-report", "kept", test=TEST.rstrip() + "\n" + once_more)
        result.assert_outcomes(passed=1)
    assert len(list(pytester.path.glob("kept/*/report.html"))) == 2


@pytest.mark.sweep
def test_tests_of_two_classes_have_their_own_baselines(run: Run, pytester: pytest.Pytester) -> None:
    both = "\n".join(
        f"    class Test{name}:\n        MARK\n        def test_it(self): pass" for name in "AB"
    )
    head, _, mark = TEST.partition("    @pytest")
    mark = "@pytest" + mark.partition("    def ")[0].replace("\n", " ")
    run({}, "--detcheck-update", test=head + both.replace("MARK", mark)).assert_outcomes(passed=2)
    names = {path.name.split(".", 1)[1] for path in pytester.path.glob("detcheck_baselines/*")}
    assert names == {"TestA.test_it.json", "TestB.test_it.json"}


@pytest.mark.sweep
def test_parameters_that_differ_in_punctuation_have_their_own_files(
    run: Run, pytester: pytest.Pytester
) -> None:
    mark = "@pytest.mark.determinism"
    names = ["a/b", "a_b", "a b", "[a_b]"]
    test = TEST.replace(mark, f"@pytest.mark.parametrize('text', {names})\n    {mark}")
    test = test.replace("(detcheck)", "(detcheck, text)")
    result = run({}, "--detcheck-update", "--detcheck-report", "kept", test=test)
    result.assert_outcomes(passed=len(names))
    files = {path.name.split(".", 1)[1] for path in pytester.path.glob("detcheck_baselines/*")}
    assert len(files) == len(list(pytester.path.glob("kept/*"))) == len(names)
    assert "test_the_server_a_b_.json" in files, "a plain name stays as it is"


@pytest.mark.sweep
def test_tests_are_skipped_or_left_out(run: Run) -> None:
    more = TEST + "\n    def test_other():\n        pass\n"
    run({}, "--detcheck-skip", test=more).assert_outcomes(passed=1, skipped=1)
    result = run({}, "--detcheck-only", test=more)
    result.assert_outcomes(passed=1, deselected=1)
    both = run({}, "--detcheck-skip", "--detcheck-only")
    assert both.ret == pytest.ExitCode.USAGE_ERROR


def test_an_unknown_option_is_one_sentence(run: Run) -> None:
    result = run({}, more="batch_size=4")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Unknown option `batch_size` *test. Did you mean `batch_sizes`?"])


def test_a_target_of_another_type_is_one_sentence(run: Run) -> None:
    result = run({}, test=TEST.replace("target=Served(endpoints=({url!r},))", "target={url!r}"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*`target` must be a target, such as *, not 'http://*'."])
    assert "Traceback" not in str(result.stdout)


@pytest.mark.parametrize("name", ["baseline", "control"])
def test_a_named_file_that_is_not_there_is_no_pass(run: Run, name: str) -> None:
    result = run({"flip_at": 3}, more=f"{name}='nowhere.json'")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*There is nothing at the path of `{name}`, *nowhere.json: *"])


@pytest.mark.sweep
def test_a_named_baseline_is_written_and_held(run: Run, pytester: pytest.Pytester) -> None:
    named = {"more": "baseline='kept/mine.json'"}
    run({}, "--detcheck-update", **named).assert_outcomes(passed=1)
    assert (pytester.path / "kept/mine.json").exists()
    assert not (pytester.path / "detcheck_baselines").exists()
    run({}, **named).assert_outcomes(passed=1)
    changed = run({"flip_at": 2, "flip_above": 0}, **named)
    changed.assert_outcomes(failed=1)
    changed.stdout.fnmatch_lines(["*that the baseline does not accept*they diverge at token 2*"])


@pytest.mark.sweep
def test_a_named_control_is_judged(run: Run, pytester: pytest.Pytester) -> None:
    run({}, "--detcheck-report", "kept").assert_outcomes(passed=1)
    (control,) = pytester.path.glob("kept/*")
    result = run({}, more=f"control={str(control)!r}, require_control=True")
    assert result.parseoutcomes() == {"inconclusive": 1}
    result.stdout.fnmatch_lines(["*The control shows nothing*"])


@pytest.mark.sweep
def test_a_test_with_a_long_name_has_files_of_its_own(run: Run, pytester: pytest.Pytester) -> None:
    mark = "@pytest.mark.determinism"
    test = TEST.replace(mark, f"@pytest.mark.parametrize('text', ['so long ' * 50])\n    {mark}")
    test = test.replace("(detcheck)", "(detcheck, text)")
    run({}, "--detcheck-update", "--detcheck-report", "kept", test=test).assert_outcomes(passed=1)
    for pattern in ("kept/*", "detcheck_baselines/*"):
        (path,) = pytester.path.glob(pattern)
        assert len(path.name) < 255


def test_ctrl_c_ends_pytest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from detcheck.rundir import RunWriter

    def pressed(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunWriter, "append_trial", pressed)
    with pytest.raises(KeyboardInterrupt):  # as pytester tells that pytest was interrupted
        run({})


@pytest.mark.sweep
def test_workers_of_xdist_measure_one_after_the_other(run: Run, pytester: pytest.Pytester) -> None:
    """Requests of two workers would be in each other's batches, and be counted as others'."""
    mark = "@pytest.mark.determinism"
    test = TEST.replace(mark, f"@pytest.mark.parametrize('number', range(4))\n    {mark}")
    result = run(
        PATIENT,
        *("-n", "2", "--detcheck-update", "--detcheck-report", "kept"),
        test=test.replace("(detcheck)", "(detcheck, number)"),
    )
    result.assert_outcomes(passed=4)
    assert "accepted as baselines" in str(result.stdout)
    assert len(list(pytester.path.glob("detcheck_baselines/*.json"))) == 4
    spans = sorted(
        (load(path).created, load(path).finished) for path in pytester.path.glob("kept/*")
    )
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_kernels_have_their_assertion(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import torch

        def test_holds(detcheck):
            detcheck.assert_batch_invariant(lambda x: x * 2, torch.randn(8, 4))

        def test_breaks(detcheck):
            detcheck.assert_batch_invariant(lambda x: x - x.mean(), torch.randn(8, 4))
        """
    )
    result = pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("raise ValueError('broken')", "errors"),
        ("pytest.skip('no', allow_module_level=True)", None),
    ],
)
def test_files_that_are_not_collected_are_reported_as_ever(
    body: str, outcome: str | None, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(test_first=f"import pytest\n{body}", test_second="def test_it(): pass")
    result = pytester.runpytest_inprocess(
        *PLUGIN, "-p", "no:cacheprovider", "--continue-on-collection-errors"
    )
    assert "INTERNALERROR" not in str(result.stdout) + str(result.stderr)
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 1
    assert outcomes[outcome or "skipped"] == 1


def test_the_plugin_costs_nothing_until_it_is_used() -> None:
    code = (
        "import sys, detcheck.pytest_plugin\n"
        "heavy = ('torch', 'transformers', 'pandas', 'matplotlib', 'numpy', 'msgspec')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
