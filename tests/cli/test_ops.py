"""`detcheck ops` on the command line."""

from __future__ import annotations

import json

import pytest
import torch

SOME = ("--ops", "sum,attention-prefill", "--dtypes", "float32")


def test_json_is_the_contract(detcheck):
    result = detcheck("ops", *SOME, "--json")
    assert result.code == 0
    cells = json.loads(result.out)["cells"]
    assert set(cells[0]) == {
        *("op", "relation", "dtype", "shape", "kernels"),
        *("rows", "rows_differ", "max_ulp", "classes", "relative_time"),
    }
    assert {cell["kernels"] for cell in cells} == {"stock", "batch-invariant"}
    assert {cell["relation"] for cell in cells} >= {"repeat", "chunking", "prefill-decode"}


@pytest.mark.sweep
def test_the_table_fits_80_columns_and_says_what_is_promised(detcheck, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # on one thread the stock sum is never cut
    try:
        result = detcheck("ops", *SOME)
    finally:
        torch.set_num_threads(threads)
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    assert "promised rows differ" in result.out
    assert "sum 49152 f32 stock: 1 | 2–33" in result.out
    assert "\\n" not in result.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--ops", "magic"), "Unknown op 'magic'"),
        (("--relations", "magic"), "Unknown relation 'magic'"),
        (("--dtypes", "int3"), "Unknown dtype 'int3'"),
        (("--kernels", "magic"), "Unknown kernels 'magic'"),
        (("--device", "tpu"), "Unknown device 'tpu'"),
        (("--device", "cuda"), "no CUDA GPU here"),
        (("--shapes-from", "./nowhere"), "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(detcheck, args, words):
    result = detcheck("ops", *args)
    assert result.code == 2
    assert words in result.only_sentence
