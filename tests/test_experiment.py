from __future__ import annotations

import json
from typing import Any

import pytest
from asking import ask, conditions_of, settled
from hypothesis import given
from hypothesis import strategies as st

from detcheck.errors import ExitCode, UsageError
from detcheck.experiment import Experiment
from detcheck.grid import probes_per_trial, share_completions
from detcheck.kernels.settings import (
    BATCH_INVARIANT,
    CORE_FAMILIES,
    OP_FAMILIES,
    STOCK,
    KernelSettings,
)
from detcheck.prompts import PromptItem


def test_the_default_is_the_experiment_of_the_readme() -> None:
    experiment = settled()
    assert experiment.prompts == ("Tell me about Richard Feynman",)
    assert experiment.kernels == (STOCK, BATCH_INVARIANT)
    assert experiment.temperature == 0.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch_sizes": (0,)}, "at least 1, not 0"),
        ({"answer": "digits"}, "`answer` must be one of number"),
        ({"items": (PromptItem(), PromptItem())}, "2 entries for 1 prompt:"),
        (
            {"prompts": ("a", "b"), "items": (PromptItem(answer="1"), PromptItem())},
            "Prompt 2 has no answer, and others have one",
        ),
        (
            {"prompts": ("a", "b"), "items": (PromptItem(id="q"), PromptItem(id="q"))},
            "2 prompts have the id 'q'",
        ),
        ({"batch_sizes": (4, -1)}, "at least 1, not -1"),
        ({"batch_sizes": ()}, "at least one, such as"),
        ({"batch_sizes": (4, 4)}, "given twice"),
        ({"batch_sizes": (64,), "completions": 48}, "larger than the 48 completions"),
        ({"batch_sizes": (1, 2, 3), "completions": 3}, None),
        ({"batch_sizes": (1, 2), "completions": 1}, "larger than the 1 completion asked"),
        ({"completions": 0}, "at least 1, not 0"),
        ({"max_new_tokens": 0}, "at least 1, not 0"),
        ({"temperature": -0.5}, "0 or more"),
        ({"temperature": float("nan")}, "0 or more"),
        ({"temperature": float("inf")}, "0 or more"),
        ({"temperature": 1.0, "top_k": -1}, "`top_k` must be 0 or more"),
        ({"temperature": 1.0, "top_p": 0.0}, "`top_p` must be above 0 and at most 1"),
        ({"temperature": 1.0, "top_p": 1.01}, "`top_p` must be above 0 and at most 1"),
        ({"temperature": 1.0, "top_p": float("nan")}, "`top_p` must be above 0 and at most 1"),
        ({"temperature": 1.0, "min_p": -0.1}, "`min_p` must be from 0 to 1"),
        ({"top_p": 0.9}, "At temperature 0 `top_p` changes nothing"),
        ({"min_p": 0.9}, "At temperature 0 `min_p` changes nothing"),
        ({"prompts": ()}, "at least one prompt"),
        ({"prompts": ("one", " \n")}, "Prompt 2 is empty"),
        ({"prompts": ("one", "one")}, "are the same"),
        ({"kernels": ()}, "each kernels setting once"),
        ({"kernels": (STOCK, STOCK)}, "each kernels setting once"),
        ({"kernels": ("fast",)}, "Unknown kernels 'fast'"),
        ({"engine": "magic"}, "Unknown engine 'magic'"),
        ({"traffic": "heavy"}, "Unknown traffic"),
        ({"dtype": "int8"}, "Unknown dtype"),
        ({"device": "tpu"}, "Unknown device"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    fields: dict[str, Any], said: str | None
) -> None:
    if said is None:
        ask(**fields)
        return
    with pytest.raises(UsageError, match=said) as caught:
        ask(**fields)
    assert caught.value.exit_code == ExitCode.USAGE
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("kernels", "families"),
    [
        (STOCK, ()),
        (BATCH_INVARIANT, OP_FAMILIES),
        ("fully-invariant", (*OP_FAMILIES, "prefill")),
        ("batch-invariant:matmul", ("matmul",)),
        ("batch-invariant:attention+matmul", ("attention", "matmul")),
    ],
)
def test_kernel_families(kernels: str, families: tuple[str, ...]) -> None:
    assert KernelSettings.parse(kernels).families == families


@pytest.mark.parametrize(
    ("kernels", "families"),
    [
        (STOCK, ()),
        (BATCH_INVARIANT, CORE_FAMILIES),
        (f"{BATCH_INVARIANT}:softmax", ("softmax",)),
        (f"{BATCH_INVARIANT}:norm+matmul", ("norm", "matmul")),
    ],
)
def test_of_all_families_only_the_core_must_be_seen_to_run(
    kernels: str, families: tuple[str, ...]
) -> None:
    assert KernelSettings.parse(kernels).required_families == families


@pytest.mark.parametrize(
    "kernels", ["", "stock:matmul", "batch-invariant:", "batch-invariant:magic", "invariant"]
)
def test_unknown_kernels_are_refused(kernels: str) -> None:
    with pytest.raises(UsageError, match="Unknown"):
        KernelSettings.parse(kernels)


def test_the_grid_is_every_combination_smallest_batch_first() -> None:
    experiment = settled(prompts=("One?", "Two?"), batch_sizes=(8, 1))
    conditions = conditions_of(experiment)
    assert [condition.condition_id for condition in conditions] == [
        "p0/stock/b1",
        "p0/batch-invariant/b1",
        "p0/stock/b8",
        "p0/batch-invariant/b8",
        "p1/stock/b1",
        "p1/batch-invariant/b1",
        "p1/stock/b8",
        "p1/batch-invariant/b8",
    ]


def test_stock_and_invariant_kernels_are_asked_the_same() -> None:
    shares: dict[str, list[tuple[int, int]]] = {STOCK: [], BATCH_INVARIANT: []}
    for condition in conditions_of(settled(completions=50)):
        shares[condition.kernels].append((condition.batch_size, condition.completions))
    assert shares[STOCK] == shares[BATCH_INVARIANT]


SIZES = st.sets(st.integers(1, 32), min_size=1, max_size=6).map(lambda sizes: tuple(sorted(sizes)))


@given(SIZES, st.integers(0, 400), st.sampled_from(["alone", "mixed"]))
def test_shares_add_up_and_leave_no_batch_size_out(
    batch_sizes: tuple[int, ...], more: int, traffic: str
) -> None:
    completions = max(*batch_sizes, len(batch_sizes)) + more
    shares = share_completions(completions, batch_sizes, traffic)
    assert sum(shares.values()) == completions
    assert set(shares) == set(batch_sizes)
    assert min(shares.values()) >= 1


def test_batches_are_whole_and_a_batch_of_one_gets_few() -> None:
    shares = share_completions(1000, (1, 4, 8, 16), "alone")
    assert all(shares[batch_size] % batch_size == 0 for batch_size in (4, 8, 16))
    assert 3 <= shares[1] <= 19
    assert max(shares[size] for size in (4, 8, 16)) - min(shares[size] for size in (4, 8, 16)) <= 16


@pytest.mark.parametrize(
    ("batch_size", "traffic", "probes"),
    [(1, "alone", 1), (8, "alone", 8), (1, "mixed", 1), (2, "mixed", 1), (9, "mixed", 4)],
)
def test_probes_per_trial(batch_size: int, traffic: str, probes: int) -> None:
    assert probes_per_trial(batch_size, traffic) == probes


def test_only_filters_in_use_are_listed() -> None:
    assert Experiment().filters == {}
    given = Experiment(temperature=0.7, top_k=20, min_p=0.1)
    assert given.filters == {"top_k": 20, "min_p": 0.1}


def test_an_experiment_survives_json() -> None:
    experiment = Experiment(prompts=("Ä?", "two"), kernels=("batch-invariant:matmul",), load_seed=7)
    assert Experiment.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"colour": "blue"}, "Unknown experiment field 'colour'"),
        ({"completions": "many"}, "`completions` must be a whole number"),
        ({"batch_sizes": 5}, "`batch_sizes` must be a list, not 5"),
        ({"temperature": None}, "`temperature` must be a number"),
        ({"batch_sizes": [1.5]}, "`batch_sizes` must each be a whole number"),
        ({"prompts": [3]}, "`prompts` must each be text"),
        ({"prompts": "Hey"}, "`prompts` must be a list, not 'Hey'"),
        ({"temperature": 0.7, "seeds": ()}, "A seed is given twice or none"),
        ({"seeds": (1, 2)}, "At temperature 0 a seed changes nothing"),
    ],
)
def test_malformed_data_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Experiment.from_dict(data)
