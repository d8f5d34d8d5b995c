"""Products, attention and convolutions by their less usual names: a row is the same in any batch.

Each check has its twin on stock ops, at a shape where they fail it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from products import cancelling
from sweeps import few
from torch import nn
from torch.nn import functional as F

from detcheck.errors import UsageError
from detcheck.kernels.mode import batch_invariant

Function = Callable[[torch.Tensor], torch.Tensor]
SIZES = (1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 33, 64)

LEFT, WEIGHT = cancelling(65, 1536, 96, torch.float32)
PARAMETER = nn.Parameter(WEIGHT)
BIAS = torch.linspace(-1, 1, 96)
VECTOR = WEIGHT[0]


pytestmark = pytest.mark.usefixtures("two_threads")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def as_complex(x: torch.Tensor) -> torch.Tensor:
    return torch.complex(x, x.flip(-1))


def twice(x: torch.Tensor) -> torch.Tensor:
    return x.expand(2, *x.shape)


PRODUCTS: dict[str, Function] = {
    "mm, out=": lambda x: torch.mm(x, WEIGHT.t(), out=torch.empty(len(x), 96)),
    "mm, a Parameter on the left": lambda x: (PARAMETER @ x.T).T,
    "mm, a tensor on the left": lambda x: (WEIGHT @ x.T).T,
    "mm of columns": lambda x: (WEIGHT @ x.T.contiguous()).T,
    "vector on the left": lambda x: VECTOR @ x.T,
    "addmm, a tensor on the left": lambda x: torch.addmm(BIAS[:, None], WEIGHT, x.T).T,
    "addmm, a bias for each column": lambda x: torch.addmm(x[:, 0], WEIGHT, x.T).T,
    "addmm with beta": lambda x: torch.addmm(BIAS, x, WEIGHT.t(), beta=0.5),
    "addmm, out=": lambda x: torch.addmm(BIAS, x, WEIGHT.t(), out=torch.empty(len(x), 96)),
    "addmm, GELU": lambda x: torch._addmm_activation(BIAS, x, WEIGHT.t(), use_gelu=True),
    "addmm_": lambda x: BIAS.expand(len(x), 96).clone().addmm_(x, WEIGHT.t()),
    "addmm, a Parameter on the left": lambda x: torch.addmm(BIAS[:, None], PARAMETER, x.T).T,
    "mv": lambda x: torch.mv(x, VECTOR),
    "matmul by a vector": lambda x: x @ VECTOR,
    "addmv": lambda x: torch.addmv(x[:, 0], x, VECTOR),
    "baddbmm": lambda x: torch.baddbmm(BIAS.expand(2, 1, 96), twice(x), twice(WEIGHT.t()))[0],
    "bmm, out=": lambda x: torch.bmm(twice(x), twice(WEIGHT.t()), out=torch.empty(2, len(x), 96))[
        0
    ],
    "addbmm": lambda x: torch.addbmm(BIAS.expand(len(x), 96), twice(x), twice(WEIGHT.t())),
    "einsum": lambda x: torch.einsum("mk,nk->mn", x, WEIGHT),
    "einsum, a Parameter on the left": lambda x: torch.einsum("nk,mk->mn", PARAMETER, x),
    "einsum, tokens by a Parameter": lambda x: torch.einsum(
        "bij,ki->bkj", x[:, :, None].expand(-1, -1, 2), PARAMETER
    ),
    "bilinear": lambda x: F.bilinear(x[:, :64], x[:, :64], random(8, 64, 64)),
}


def rows_that_differ(function: Function, x: torch.Tensor) -> int:
    """Rows of smaller batches, from either end, that are not bitwise those of the whole batch."""
    whole = function(x)
    differ = 0
    for size in SIZES:
        for start in {0, len(x) - size} if size <= len(x) else ():
            part = function(x[start : start + size].clone())
            differ += int((part != whole[start : start + size]).reshape(size, -1).any(-1).sum())
    return differ


USUAL = ("mm, out=", "mm, a Parameter on the left", "mm, a tensor on the left", "mv")
SWEPT = [pytest.param(name, marks=pytest.mark.sweep) for name in PRODUCTS if name not in USUAL]


@few("name", [*USUAL, *SWEPT])
def test_products_by_other_names_keep_the_promise(name: str) -> None:
    with torch.no_grad():
        assert rows_that_differ(PRODUCTS[name], LEFT) > 0
        with batch_invariant("matmul"):
            assert rows_that_differ(PRODUCTS[name], LEFT) == 0


def test_complex_products_keep_the_promise() -> None:
    x, weight = as_complex(LEFT), as_complex(WEIGHT).t()
    assert rows_that_differ(lambda rows: rows @ weight, x) > 0
    with batch_invariant("matmul"):
        assert rows_that_differ(lambda rows: rows @ weight, x) == 0


@pytest.mark.sweep
def test_complex_products_of_other_shapes_keep_the_promise() -> None:
    for inner, columns in ((64, 8), (577, 33)):
        left, weight = cancelling(65, inner, columns, torch.float64)
        x, matrix = as_complex(left), as_complex(weight).t()
        with batch_invariant("matmul"):
            assert rows_that_differ(lambda rows, matrix=matrix: rows @ matrix, x) == 0


COLUMNS = [
    (torch.float64, 2, (1, 13, 16, 31)),
    (torch.complex128, 4, (16, 25)),
    (torch.float32, 4, (17, 33)),
    (torch.complex64, 4, (17, 33)),
]
"""Dtypes, threads, and sizes of a batch of columns at which the bits of stock products change."""


@few(("dtype", "threads", "sizes"), COLUMNS)
def test_columns_keep_the_promise_at_any_width(
    dtype: torch.dtype, threads: int, sizes: tuple[int, ...]
) -> None:
    x, weight = cancelling(65, 100, 24, torch.float64)
    if dtype.is_complex:
        x, weight = as_complex(x), as_complex(weight)
    x, weight = x.to(dtype), weight.to(dtype)

    def differ() -> bool:
        whole = weight @ x.T.contiguous()
        parts = [weight @ x[:size].T.contiguous() for size in sizes]
        return any(not torch.equal(part, whole[:, : part.shape[1]]) for part in parts)

    torch.set_num_threads(threads)
    assert differ()
    with batch_invariant("matmul"):
        assert not differ()


VALUES: dict[str, Callable[[], torch.Tensor]] = {
    "mm, out=": lambda: torch.mm(LEFT, WEIGHT.t(), out=torch.empty(0)),
    "addmm, out=": lambda: torch.addmm(BIAS, LEFT, WEIGHT.t(), alpha=2, out=torch.empty(65, 96)),
    "addmm, ReLU": lambda: torch._addmm_activation(BIAS, LEFT, WEIGHT.t()),
    "addmm, GELU": lambda: torch._addmm_activation(BIAS, LEFT, WEIGHT.t(), use_gelu=True),
    "addmm_": lambda: torch.ones(65, 96).addmm_(LEFT, WEIGHT.t(), beta=3, alpha=0.5),
    "addmm of NaN": lambda: torch.addmm(torch.full((96,), torch.nan), LEFT, WEIGHT.t(), beta=0),
    "baddbmm_": lambda: torch.ones(2, 65, 96).baddbmm_(twice(LEFT), twice(WEIGHT.t()), beta=2),
    "addbmm": lambda: torch.addbmm(BIAS, twice(LEFT), twice(WEIGHT.t()), alpha=0.5),
    "addbmm of nothing": lambda: torch.addbmm(BIAS[:4], random(0, 3, 5), random(0, 5, 4)),
    "addmv_": lambda: torch.ones(65).addmv_(LEFT, VECTOR, alpha=2),
    "mv of integers": lambda: torch.ones(3, 4, dtype=torch.int64).mv(torch.arange(4)),
    "bmm of nothing": lambda: torch.bmm(random(0, 3, 5), random(0, 5, 4)),
    "complex": lambda: as_complex(LEFT) @ as_complex(WEIGHT).t(),
}


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("name", VALUES)
def test_values_are_those_of_stock(name: str) -> None:
    stock = VALUES[name]()
    with batch_invariant("matmul"):
        ours = VALUES[name]()
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-3)


REFUSED: dict[str, Callable[[], torch.Tensor]] = {
    "mm of a vector": lambda: torch.mm(VECTOR, WEIGHT.t()),
    "mm of two dtypes": lambda: torch.mm(LEFT, WEIGHT.t().double()),
    "mm of other sizes": lambda: torch.mm(LEFT, WEIGHT),
    "bmm of other sizes": lambda: torch.bmm(twice(LEFT), twice(WEIGHT.t())[:1]),
    "mv of a matrix": lambda: torch.mv(LEFT, WEIGHT.t()),
    "addmm of other sizes": lambda: torch.addmm(BIAS, LEFT, WEIGHT),
    "triangular systems of other sizes": lambda: torch.linalg.solve_triangular(
        torch.eye(4).expand(3, 4, 4), torch.ones(3, 5, 2), upper=False
    ),
    "triangular systems in half precision": lambda: torch.linalg.solve_triangular(
        torch.eye(4).bfloat16(), torch.ones(4, 2).bfloat16(), upper=False
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stock_refuses_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError) as stock:
        REFUSED[name]()
    with batch_invariant("matmul"), pytest.raises(RuntimeError) as ours:
        REFUSED[name]()
    assert str(ours.value) == str(stock.value)


def test_an_out_of_another_dtype_is_refused() -> None:
    operands = twice(LEFT), twice(WEIGHT.t())
    out = torch.empty(0, dtype=torch.float64)
    with batch_invariant("matmul"):
        with pytest.raises(RuntimeError, match="Expected out tensor to have dtype"):
            torch.bmm(*operands, out=out)
        assert torch.equal(torch.bmm(*operands, out=torch.empty(0)), torch.bmm(*operands))


QUERIES = random(65, 4, 17, 64)
HIDDEN = random(9, 2, 512)


@pytest.fixture(scope="module")
def layers() -> dict[str, Function]:
    torch.manual_seed(0)
    convolution = nn.Conv1d(24, 32, 5, padding=2).eval()
    encoder = nn.TransformerEncoderLayer(512, 4, 1536, batch_first=True).eval()
    attention = nn.MultiheadAttention(512, 4, batch_first=True).eval()
    return {
        "conv1d": convolution,
        "conv2d": lambda x: F.conv2d(x[:, None], random(8, 1, 3, 3)),
        "transformer encoder": encoder,
        "multi-head attention": lambda x: attention(x, x, x, need_weights=False)[0],
        "attention in decode": lambda x: F.scaled_dot_product_attention(x[:, :, :1], x, x),
        "attention, causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        "attention, masked": lambda x: F.scaled_dot_product_attention(
            x, x, x, attn_mask=x[:, :1, :, :17] > 0
        ),
    }


INPUTS = {
    "conv1d": random(65, 24, 40),
    "conv2d": random(9, 24, 40),
    "transformer encoder": HIDDEN,
    "multi-head attention": HIDDEN,
    "attention in decode": QUERIES,
    "attention, causal": QUERIES,
    "attention, masked": QUERIES,
}
STOCK_FAILS = ("conv1d", "transformer encoder", "multi-head attention", "attention in decode")


@few("name", INPUTS, every=3)
def test_layers_keep_the_promise(name: str, layers: dict[str, Function]) -> None:
    with torch.no_grad():
        if name in STOCK_FAILS:
            assert rows_that_differ(layers[name], INPUTS[name]) > 0
        with batch_invariant():
            assert rows_that_differ(layers[name], INPUTS[name]) == 0


@pytest.mark.parametrize("name", INPUTS)
def test_layers_give_the_values_and_gradients_of_stock(
    name: str, layers: dict[str, Function]
) -> None:
    x = INPUTS[name][:3].clone().requires_grad_()
    stock = layers[name](x)
    expected = torch.autograd.grad(stock.square().sum(), x)[0]
    with batch_invariant():
        ours = layers[name](x)
        got = torch.autograd.grad(ours.square().sum(), x)[0]
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def attended(x: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True)[0]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("with_gradients", [False, True])
def test_attention_runs_inside_transforms(*, with_gradients: bool) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return attended(x).sin().sum()

    each = torch.func.vmap(torch.func.grad(loss) if with_gradients else attended)
    expected = each(QUERIES[:5])
    with batch_invariant():
        ours = each(QUERIES[:5])
        torch.testing.assert_close(ours, expected)
        assert torch.equal(each(QUERIES[2:3])[0], ours[2])


def test_batches_of_nothing_still_work(layers: dict[str, Function]) -> None:
    with torch.no_grad(), batch_invariant():
        assert layers["conv1d"](random(0, 24, 40)).shape == (0, 32, 40)
        assert layers["attention, causal"](QUERIES[:0]).shape == (0, 4, 17, 64)


def test_the_fast_path_of_encoders_comes_back() -> None:
    with batch_invariant("attention"):
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_weights_run_as_stock_and_the_proof_names_them(layout: torch.layout) -> None:
    layer = nn.Linear(64, 32).requires_grad_(False)
    layer.weight = nn.Parameter(layer.weight.relu().to_sparse(layout=layout), requires_grad=False)
    stock = layer(QUERIES)
    for pack_weights in ("auto", "off"):
        with batch_invariant(pack_weights=pack_weights) as mode:
            torch.testing.assert_close(layer(QUERIES), stock)
        assert "covers: aten::addmm" in str(mode.proof().fault)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_work_in_linear_layers_and_are_refused_by_attention() -> None:
    layer = nn.Linear(64, 32)
    x = torch.nested.nested_tensor([random(3, 64), random(5, 64)])
    jagged = torch.nested.nested_tensor([random(3, 64)], layout=torch.jagged)
    with torch.no_grad():
        stock = layer(x).unbind()
        for pack_weights in ("auto", "off"):
            with batch_invariant(pack_weights=pack_weights):
                torch.testing.assert_close(layer(x).unbind(), stock)
                for nested in (x, jagged):
                    with pytest.raises(UsageError, match="takes no nested tensors"):
                        F.scaled_dot_product_attention(nested, nested, nested)
