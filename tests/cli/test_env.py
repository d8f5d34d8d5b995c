"""`detcheck env`."""

from __future__ import annotations

import json


def test_the_table_names_what_matters(detcheck):
    result = detcheck("env", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    for name in ("machine.cpu", "packages.numpy", "device"):
        assert name in result.out


def test_json_is_what_a_run_keeps(detcheck):
    document = json.loads(detcheck("env", "--json", "--device", "cpu").out)
    assert document["device"] == "cpu"
    assert document["packages"]["detcheck"]
