"""The environment: what is recorded, what never is, and what counts as a difference."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from detcheck import environment
from detcheck.environment import VARIABLES, collect, differences

BASE = {
    "device": "cpu",
    "python": "3.11.2",
    "machine": {"cpu": "X", "isa": ["avx2"], "memory_gb": 8.0},
    "packages": {"torch": "2.12.0", "numpy": "2.0.0"},
    "torch": {"num_threads": 2, "tf32_matmul": False},
    "variables": {"OMP_NUM_THREADS": "2"},
}


def test_it_is_plain_data():
    found = collect()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"]
    assert found["machine"]["threads"] >= 1


def test_collecting_imports_no_torch():
    code = (
        "import sys; from detcheck.environment import collect\n"
        "assert 'torch' not in collect()\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == "False\n"


def test_only_listed_variables_are_recorded(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/home/someone/lib")
    found = collect()
    assert found["variables"]["OMP_NUM_THREADS"] == "3"
    assert set(found["variables"]) <= set(VARIABLES)
    assert "hf_secret" not in json.dumps(found)


def test_nothing_tells_who_or_where(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    text = json.dumps(collect())
    assert platform.node() not in text
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert f'"{getpass.getuser()}"' not in text


def test_torch_settings_and_device():
    pytest.importorskip("torch")
    found = collect("cpu")
    assert found["device"] == "cpu"
    assert found["torch"]["num_threads"] >= 1
    assert "float32_matmul_precision" in found["torch"]


@pytest.mark.parametrize(("gpu", "device"), [({"name": "GPU"}, "cuda"), (None, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch, gpu, device):
    monkeypatch.setattr(environment, "_gpu", lambda torch: gpu)
    assert collect("auto")["device"] == device


def test_a_gpu_is_described(monkeypatch):
    properties = SimpleNamespace(name="GPU", total_memory=2**34, major=9, minor=0)
    torch = SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 1,
            get_device_properties=lambda index: properties,
        ),
        version=SimpleNamespace(cuda="13.0"),
        backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 91000)),
    )
    driver = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul\n"
    monkeypatch.setattr(environment, "_read", lambda path: driver)
    assert environment._gpu(torch) == {
        "name": "GPU",
        "count": 1,
        "memory_gb": 16.0,
        "capability": "9.0",
        "driver": "580.65.06",
        "cuda": "13.0",
        "cudnn": 91000,
    }


def test_a_flag_that_torch_refuses_to_tell_is_none():
    class Mixed:
        @property
        def allow_tf32(self) -> bool:
            raise RuntimeError("mix of the legacy and new APIs")

    assert environment._flag(Mixed(), "allow_tf32") is None
    assert environment._flag(Mixed(), "no_such_flag") is None


def test_math_libraries_are_read_from_the_build():
    text = (
        "  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 20240605 for x\n"
        "  - Intel(R) MKL-DNN v3.12.0 (Git Hash 80af)\n"
    )
    assert environment._build(text) == {"mkl": "2024.2", "mkldnn": "3.12.0"}
    assert environment._build("") == {"mkl": None, "mkldnn": None}


def test_equal_environments_have_no_difference():
    assert differences(BASE, BASE) == []
    assert differences(collect(), collect()) == []
    assert differences({}, {}) == []


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"device": "cuda"}, "device cpu → cuda"),
        ({"machine": {"cpu": "Y", "isa": ["avx2"]}}, "CPU X → Y"),
        (
            {"machine": {"cpu": "X", "isa": ["avx2", "avx512f"]}},
            "instruction sets avx2 → avx2+avx512f",
        ),
        ({"packages": {"torch": "2.13.0"}}, "torch 2.12.0 → 2.13.0"),
        ({"packages": {}}, "torch 2.12.0 → unset"),
        ({"torch": {"num_threads": 4, "tf32_matmul": False}}, "torch num threads 2 → 4"),
        ({"torch": {"num_threads": 2, "tf32_matmul": True}}, "torch tf32 matmul off → on"),
        ({"variables": {}}, "OMP_NUM_THREADS 2 → unset"),
    ],
)
def test_what_changes_numerics_is_a_difference(change, phrase):
    assert differences(BASE, BASE | change) == [phrase]


@pytest.mark.parametrize(
    "change",
    [
        {"python": "3.13.0"},
        {"machine": {"cpu": "X", "isa": ["avx2"], "memory_gb": 64.0}},
        {"packages": {"torch": "2.12.0", "numpy": "2.5.0"}},
    ],
)
def test_what_does_not_change_numerics_is_none(change):
    assert differences(BASE, BASE | change) == []


def test_what_one_did_not_look_at_is_no_difference():
    light = {key: value for key, value in BASE.items() if key not in ("torch", "device")}
    assert differences(BASE, light) == []
    assert differences(light, BASE) == []


@pytest.mark.parametrize("odd", [None, 3, "x", ["y"]])
def test_an_edited_environment_is_a_difference_and_no_crash(odd):
    assert differences(BASE, BASE | {"packages": odd}) == ["torch 2.12.0 → unset"]
    assert differences(BASE, BASE | {"variables": odd})


def test_control_characters_are_made_visible():
    changed = BASE | {"variables": {"OMP_NUM_THREADS": "\x1b[31m2"}}
    assert differences(BASE, changed) == ["OMP_NUM_THREADS 2 → \\x1b[31m2"]
