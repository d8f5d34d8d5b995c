"""The matrix: a planted fault appears in its own cell, and in no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from detcheck.errors import MeasurementError, ModelError, UsageError
from detcheck.probes import cases as cases_module
from detcheck.probes import ops as ops_module
from detcheck.probes.attention_cases import request_pairs, requests
from detcheck.probes.cases import OPS, Call, OpCase, cases
from detcheck.probes.matrix import class_words, lines
from detcheck.probes.ops import PROMISED, Cell, audit
from detcheck.probes.relations import RELATIONS, ROW_RELATIONS
from detcheck.probes.shapes import EMBEDDED, LayerShapes, shapes_of

TINY = LayerShapes("tiny", 64, 96, 4, 2, 16, 640)
ORDINARY = ("rms_norm", "softmax", "attention-prefill")


def test_every_op_has_a_case() -> None:
    assert tuple(dict.fromkeys(case.op for case in cases(EMBEDDED))) == OPS


@pytest.mark.sweep
def test_batch_invariant_cells_keep_every_promise() -> None:
    cells = audit(TINY)
    promised = [cell for cell in cells if cell.promised]
    assert {cell.relation for cell in promised} == set(PROMISED)
    assert {cell.op for cell in promised} == set(OPS)
    assert all(cell.rows > 0 and cell.rows_differ == 0 and cell.max_ulp == 0 for cell in promised)
    assert all(cell.relative_time == 1 for cell in cells if cell.kernels == "stock")


@pytest.mark.sweep
def test_stock_cells_can_differ() -> None:
    """The matrix shows that float32 products on a CPU change bits with M."""
    cells = audit(EMBEDDED, ops=["linear"], dtypes=["float32"], kernels=["stock"])
    size = [cell for cell in cells if cell.relation == "batch-size"]
    assert any(cell.rows_differ and cell.max_ulp and len(cell.classes) > 1 for cell in size)
    assert all(cell.relative_time == 1 for cell in cells)


def planted(function: Callable[[torch.Tensor], torch.Tensor]) -> OpCase:
    x = torch.randn(33, 40, generator=torch.Generator().manual_seed(0))
    return OpCase("planted", "40", lambda dtype, seed: Call(function, (x.to(dtype),)))


def by_size(x: torch.Tensor) -> torch.Tensor:
    return x + (len(x) == 4) * x.abs() / 8


def by_position(x: torch.Tensor) -> torch.Tensor:
    out = x.clone()
    if len(x) == 33:
        out[5] += 1
    return out


def by_neighbours(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + x.abs().max() / 8).round()


@pytest.mark.parametrize(
    ("function", "relation"),
    [(by_size, "batch-size"), (by_position, "position"), (by_neighbours, "neighbours")],
)
def test_a_planted_fault_is_in_its_cell(
    function: Any, relation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops_module, "cases", lambda _: (planted(function),))
    monkeypatch.setattr(ops_module, "OPS", ("planted",))
    cells = audit(TINY, dtypes=["float32"], kernels=["stock"])
    assert {cell.relation for cell in cells} == set(ROW_RELATIONS)
    by_relation = {cell.relation: cell for cell in cells}
    assert by_relation[relation].rows_differ > 0
    assert by_relation["repeat"].rows_differ == 0


def test_classes_name_the_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_module, "cases", lambda _: (planted(by_size),))
    monkeypatch.setattr(ops_module, "OPS", ("planted",))
    cells = audit(TINY, relations=["batch-size"], dtypes=["float32"], kernels=["stock"])
    assert class_words(cells[0].classes) == "1–3,7–33 | 4"


@pytest.mark.parametrize("relation", ["padding", "chunking", "prefill-decode", "prefix-cache"])
def test_relations_about_requests_compare_the_right_rows(
    relation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 the two sides agree up to rounding, so they compute the same function."""
    inputs = tuple(x.double() for x in requests(TINY, 65, 65, 0))
    for expected, got in request_pairs(inputs)[relation]():
        torch.testing.assert_close(got, expected)
    stock = F.scaled_dot_product_attention

    def broken(query: Any, key: Any, value: Any, **kwargs: Any) -> Any:
        return stock(query, key, value, **kwargs) + key.shape[2] % 64 * 1e-3

    monkeypatch.setattr(F, "scaled_dot_product_attention", broken)
    pairs = list(request_pairs(inputs)[relation]())
    assert any(not torch.allclose(got, expected, atol=1e-4) for expected, got in pairs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ops": ["magic"]}, "Unknown op 'magic'"),
        ({"relations": ["magic"]}, "Unknown relation 'magic'"),
        ({"dtypes": ["float8"]}, "Unknown dtype 'float8'"),
        ({"kernels": ["magic"]}, "Unknown kernels 'magic'"),
        ({"kernels": ["as-served"]}, "is for endpoints"),
        ({"ops": []}, "at least one op"),
    ],
)
def test_unknown_names_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        audit(TINY, **options)


def test_kernels_that_fail_their_self_check_are_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from detcheck.kernels import mode as mode_module

    monkeypatch.setattr(mode_module, "install", lambda family, calls: lambda: None)
    with pytest.raises(MeasurementError, match="not in force"):
        audit(TINY, ops=["mean"], dtypes=["float32"])


def test_shapes_come_from_a_configuration(tmp_path: Any) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    ).save_pretrained(tmp_path)
    shapes = shapes_of(str(tmp_path))
    assert (shapes.hidden, shapes.head_dim, shapes.vocabulary) == (128, 32, 1000)
    assert shapes.linears == ((128, 128), (128, 64), (128, 256), (256, 128))


def test_a_missing_model_gives_one_sentence(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        shapes_of(str(tmp_path / "nothing"))


def test_relations_that_apply_to_none_of_the_ops_are_refused() -> None:
    with pytest.raises(UsageError, match="padding do not apply to silu, so nothing was probed"):
        audit(EMBEDDED, ops=["silu"], relations=["padding"], dtypes=["float32"])


@pytest.mark.parametrize(
    ("kernels", "promised"),
    [
        ("batch-invariant", True),
        ("batch-invariant:norm+reduce", True),
        ("batch-invariant:norm", False),
        ("batch-invariant:matmul", False),
        ("stock", False),
    ],
)
def test_a_subset_promises_nothing_of_other_ops(kernels: str, promised: bool) -> None:
    cell = Cell("rms_norm", "batch-size", "float32", "576", kernels, 9, 1, 1, (), None)
    assert cell.promised == promised


def test_every_op_has_its_families() -> None:
    assert set(cases_module.FAMILIES_OF) == set(cases_module.OPS)


def test_lines_group_cells() -> None:
    def cell(relation: str, ulp: int) -> Cell:
        return Cell("linear", relation, "float32", "2→3", "stock", 9, 1, ulp, (), 1.0)

    (line,) = lines([cell("repeat", 1), cell("position", 7)])
    assert line.max_ulp == 7
    assert line.relative_time == 1.0
    assert line.classes == ()


def test_products_cancel() -> None:
    left, weight = cases_module.cancelling(9, 500, 40, 0)
    totals = (left.double() @ weight.double().t()).abs()
    sizes = left.double().abs() @ weight.double().abs().t()
    assert (totals / sizes).mean() < 0.01


def test_the_relations_are_the_eight_and_layout() -> None:
    assert len(RELATIONS) == 9


def test_fully_invariant_attention_holds_the_relations_about_requests() -> None:
    """Stock attention is the twin: the same rows differ there."""
    relations = ["chunking", "prefill-decode", "prefix-cache"]
    cells = audit(
        TINY,
        ops=["attention-prefill"],
        relations=relations,
        dtypes=["float32"],
        kernels=["stock", "fully-invariant"],
    )
    differing = {(cell.kernels, cell.relation): cell.rows_differ for cell in cells}
    assert {cell.relation for cell in cells if cell.promised} == {*relations}
    assert all(differing["fully-invariant", relation] == 0 for relation in relations)
    assert differing["stock", "prefill-decode"] > 0 < differing["stock", "prefix-cache"]
