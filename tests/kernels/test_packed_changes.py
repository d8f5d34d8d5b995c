"""Packed weights never outlive the values that they were made from."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detcheck.kernels.cpu import packed_weight
from detcheck.kernels.cpu.packed import STORE
from detcheck.kernels.mode import batch_invariant

pytestmark = pytest.mark.skipif(
    torch.float32 not in packed_weight._dtypes(), reason="oneDNN packs nothing on this machine"
)


def operands() -> tuple[torch.Tensor, nn.Parameter]:
    """Left-hand side (5, 64) and parameter (48, 64)."""
    generator = torch.Generator().manual_seed(7)
    left, weight = (torch.randn(rows, 64, generator=generator) for rows in (5, 48))
    return left, nn.Parameter(weight)


def fresh(left: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product by the values that `weight` has now, through a parameter never packed before."""
    return F.linear(left, nn.Parameter(weight.detach().clone()))


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.1),
    "AdamW fused": lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True),
}


def losses(optimizer: str, steps: int = 4) -> list[float]:
    """Train a small network; returns the loss of each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    x, y = torch.randn(12, 16), torch.randn(12, 4)
    update = OPTIMIZERS[optimizer]([*model.parameters()])
    found = []
    for _ in range(steps):
        loss = F.mse_loss(model(x), y)
        update.zero_grad()
        loss.backward()
        update.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_gives_the_losses_of_stock(optimizer: str) -> None:
    expected = losses(optimizer)
    with batch_invariant("matmul") as mode:
        got = losses(optimizer)
        assert mode.proof().self_check == "passed"
    assert got == pytest.approx(expected, rel=1e-4)
    assert len({round(loss, 3) for loss in expected}) == len(expected)


PLANTED = """
import runpy, sys
import pytest
test = runpy.run_path(sys.argv[1])
test["packed_weight"].PackedWeight.is_current = lambda self, *weights: True
sys.modules["detcheck.kernels.cpu.packed"].watch_changes = lambda store: lambda: None
for optimizer in test["OPTIMIZERS"]:
    expected = test["losses"](optimizer)
    with test["batch_invariant"]("matmul"):
        print(test["losses"](optimizer) == pytest.approx(expected, rel=1e-4))
"""


@pytest.mark.sweep
def test_the_same_check_catches_copies_that_are_never_renewed() -> None:
    """In a process of its own, in which nothing else ever packed weights or watched optimizers."""
    done = subprocess.run(
        [sys.executable, "-c", PLANTED, __file__], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["False"] * len(OPTIMIZERS), done.stderr


def in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.add_(1)


def in_inference_mode(weight: nn.Parameter) -> None:
    with torch.inference_mode():
        weight.mul_(2)


def swapped(weight: nn.Parameter) -> None:
    weight.data = weight.detach() + 1


def at_the_same_address(weight: nn.Parameter) -> None:
    """As weights that are freed and loaded again may lie."""
    memory = weight.detach().numpy()
    weight.data = torch.empty(0)
    memory += 1
    weight.data = torch.from_numpy(memory)


def through_data(weight: nn.Parameter) -> None:
    weight.data.add_(1)


def copied_over(weight: nn.Parameter) -> None:
    weight.data.copy_(torch.ones_like(weight))


def by_state_dict(weight: nn.Parameter) -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = weight
    layer.load_state_dict({"weight": torch.ones_like(weight)})


CHANGES = [
    *(in_place, in_inference_mode, swapped, at_the_same_address, through_data, copied_over),
    by_state_dict,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_packed_again(change: Callable[[nn.Parameter], None]) -> None:
    left, weight = operands()
    with torch.no_grad(), batch_invariant("matmul") as mode:
        before = F.linear(left, weight)
        change(weight)
        after = F.linear(left, weight)
        assert torch.equal(after, fresh(left, weight))
        assert not torch.equal(after, before)
        assert mode.proof().self_check == "passed"


def test_an_alias_that_is_kept_may_write_later() -> None:
    left, weight = operands()
    with torch.no_grad(), batch_invariant("matmul"):
        F.linear(left, weight)
        alias, _other = weight.data, weight.data
        for _ in range(2):
            F.linear(left, weight)
            alias.add_(1)
            assert torch.equal(F.linear(left, weight), fresh(left, weight))


def test_a_change_that_nothing_records_is_in_the_proof() -> None:
    left, weight = operands()
    alias = weight.data  # before anything watches
    with torch.no_grad(), batch_invariant("matmul") as mode:
        F.linear(left, weight)
        assert mode.proof().self_check == "passed"
        alias.add_(1)
        assert mode.proof().self_check == "passed"  # nothing was computed from the old values
        F.linear(left, weight)
    assert "(48, 64)) were changed" in mode.proof().self_check
    assert "data" not in nn.Parameter.__dict__  # nothing is watched any more


def test_kept_copies_are_checked_when_the_next_mode_starts() -> None:
    left, weight = operands()
    release = STORE.keep()
    try:
        with torch.no_grad():
            with batch_invariant("matmul"):
                F.linear(left, weight)
            assert STORE.num_bytes
            weight.data.add_(1)
            with batch_invariant("matmul"):
                assert torch.equal(F.linear(left, weight), fresh(left, weight))
    finally:
        release()
    assert STORE.num_bytes == 0


def test_a_failure_while_a_weight_is_packed_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, weight = operands()

    def no_memory(*_: object) -> torch.Tensor:
        raise MemoryError

    with torch.no_grad(), batch_invariant("matmul") as mode:
        with monkeypatch.context() as patch:
            patch.setattr(packed_weight, "_reorder", no_memory)
            with pytest.raises(MemoryError):
                F.linear(left, weight)
        assert torch.equal(F.linear(left, weight), fresh(left, weight))
        assert mode.proof().self_check == "passed"
    assert STORE.num_bytes == 0


def test_threads_may_enter_and_leave_modes_of_their_own() -> None:
    left, weight = operands()
    wrong: list[object] = []

    def work() -> None:
        for _ in range(3):
            with torch.no_grad(), batch_invariant("matmul") as mode:
                whole = F.linear(left, weight)
                if not torch.equal(F.linear(left[:1], weight), whole[:1]):
                    wrong.append(whole)
                if mode.proof().fault is not None:
                    wrong.append(mode.proof().fault)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert STORE.num_bytes == 0
