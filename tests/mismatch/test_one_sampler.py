"""A mismatch has one sampler, as it is: other targets are refused before anything is opened."""

from __future__ import annotations

import pytest

from detcheck.cli.app import run_program
from detcheck.errors import UsageError
from detcheck.experiment import Experiment
from detcheck.mismatch.measure import measure_mismatch
from detcheck.mismatch.options import TrainerOptions
from detcheck.targets import InProcess, Served, Target, Vllm

ONE, OTHER = "http://localhost:1/v1", "http://localhost:2/v1"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (InProcess(prefix_cache=("warm",)), "leave `prefix_cache` out"),
        (InProcess(prefix_cache=("cold", "warm")), "leave `prefix_cache` out"),
        (Vllm(tensor_parallel=(1, 2)), "give one of `endpoints` or `tensor_parallel`"),
        (Served(endpoints=(ONE, OTHER)), "give one of `endpoints`"),
        (Served(endpoints=(ONE,), choices=2), "leave `choices` out"),
    ],
)
def test_several_places_or_choices_are_refused(target: Target, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        measure_mismatch(Experiment(temperature=1.0), target, TrainerOptions())


@pytest.mark.parametrize("target", [InProcess(), Vllm(), Served(endpoints=(ONE,))])
def test_one_sampler_is_asked(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise RuntimeError("opened")

    monkeypatch.setattr("detcheck.mismatch.measure.open_engine", opened)
    with pytest.raises(RuntimeError, match="opened"):
        measure_mismatch(Experiment(temperature=1.0), target, TrainerOptions())


def test_the_command_has_no_prefix_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(["mismatch", "--prefix-cache", "warm"]) == 2
    assert "No such option: --prefix-cache" in capsys.readouterr().err
