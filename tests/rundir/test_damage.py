"""What was changed or cut is refused, in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import record, small_experiment

from detcheck.errors import RunDirectoryError
from detcheck.rundir import (
    COMPLETIONS_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    VARIANTS_FILE,
    load,
)
from detcheck.rundir.files import dump_line, dump_sealed

from .runs import FILES, snapshot


@pytest.mark.sweep
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_was_never_committed(
    base: Path, sealed_bytes: dict[str, int], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = (base / name).read_bytes()
    index = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = content[:index] + bytes([content[index] ^ flip]) + content[index + 1 :]
    check_damage(base, name, changed, harmless=index >= sealed_bytes[name])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_truncated_file_is_refused_or_lost_nothing_committed(
    base: Path, sealed_bytes: dict[str, int], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = (base / name).read_bytes()
    size = data.draw(st.integers(0, len(content) - 1))
    check_damage(base, name, content[:size], harmless=size >= sealed_bytes[name])


def check_damage(base: Path, name: str, changed: bytes, *, harmless: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(base, Path(folder) / "run"))
        (path / name).write_bytes(changed)
        if harmless:
            assert snapshot(load(path)) == snapshot(load(base))
        else:
            with pytest.raises(RunDirectoryError) as caught:
                load(path)
            assert one_sentence(caught.value)


def one_sentence(error: Exception) -> bool:
    return str(error).endswith(".") and "\n" not in str(error)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run directory"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(RunDirectoryError, match=rf"{name}"):
        load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        load(copy)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "schema_version"),
        (b"{}", "schema_version"),
        (b'{"schema_version": "1"}', "schema_version"),
        (b'{"schema_version": 2}', "changed after it was written"),
    ],
)
def test_a_run_file_that_is_none(copy: Path, content: bytes, said: str) -> None:
    (copy / RUN_FILE).write_bytes(content)
    with pytest.raises(RunDirectoryError, match=said):
        load(copy)


def test_a_newer_schema_asks_for_an_upgrade(copy: Path) -> None:
    document = json.loads((copy / RUN_FILE).read_bytes())
    (copy / RUN_FILE).write_text(json.dumps(document | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(RunDirectoryError, match="upgrade detcheck"):
        load(copy)


def test_an_edit_by_hand_is_refused(copy: Path) -> None:
    content = (copy / RUN_FILE).read_text()
    assert '"elapsed_s": 0.' in content
    (copy / RUN_FILE).write_text(content.replace('"elapsed_s": 0.', '"elapsed_s": 9.', 1))
    with pytest.raises(RunDirectoryError, match="changed after it was written"):
        load(copy)


def edit_run_file(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit `run.json` as one would who knows how it is sealed."""
    document = json.loads((path / RUN_FILE).read_bytes())
    document.pop("seal")
    edit(document)
    (path / RUN_FILE).write_bytes(dump_sealed(document))


def edit_line(path: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the first line of a file, and seal the file again."""
    first, _, rest = (path / name).read_bytes().partition(b"\n")
    line = json.loads(first)
    replacement = edit(line)
    data = dump_line(replacement if isinstance(replacement, dict) else line)
    if isinstance(replacement, bytes):
        data = replacement + b"\n"
    rest = rest[: rest.rindex(b'{"condition": 0, "trial": 99')]
    (path / name).write_bytes(data + rest)
    seal = {"bytes": len(data + rest), "sha256": hashlib.sha256(data + rest).hexdigest()}
    edit_run_file(path, lambda document: document["files"].update({name: seal}))


def first_condition(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["conditions"][0].update(fields)


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document.pop("experiment"),
        lambda document: document.update(experiment=[]),
        lambda document: document["experiment"].update(colour="blue"),
        lambda document: document["experiment"].update(prompts=[1]),
        lambda document: document["experiment"].update(prompts=5),
        lambda document: document["experiment"].update(batch_sizes=[1, 4.0]),
        lambda document: document["experiment"].update(batch_sizes=[[1]]),
        lambda document: document["experiment"].update(completions="many"),
        lambda document: document["experiment"].update(kernels=[7]),
        lambda document: document.update(conditions={}),
        lambda document: document.update(conditions=None),
        lambda document: document["conditions"].pop(),
        lambda document: document["conditions"].append(document["conditions"][0]),
        first_condition(colour="blue"),
        first_condition(prompt_index=-1),
        first_condition(prompt_index="0"),
        first_condition(kernels="other"),
        first_condition(batch_size=2),
        first_condition(completed=2),
        first_condition(completed="3"),
        first_condition(elapsed_s=None),
        first_condition(error=7),
        lambda document: document.pop("files"),
        lambda document: document.update(files={}),
        lambda document: document["files"].update({VARIANTS_FILE: {}}),
        lambda document: document["files"][VARIANTS_FILE].update(bytes=-1),
        lambda document: document["files"][VARIANTS_FILE].update(bytes="all"),
        lambda document: document["files"][VARIANTS_FILE].update(sha256=None),
        lambda document: document["files"][VARIANTS_FILE].update(bytes=0),
        lambda document: document.update(proofs=[]),
        lambda document: document["proofs"].update(stock={}),
        lambda document: document.update(environment=7),
        lambda document: document.update(run_id=7),
        lambda document: document.update(finished=7),
        lambda document: document.update(summary=None),
        lambda document: document.update(summary=[7]),
    ],
)
def test_a_malformed_run_file_is_one_sentence(
    copy: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    edit_run_file(copy, edit)
    with pytest.raises(RunDirectoryError) as caught:
        load(copy)
    assert one_sentence(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda line: line.pop("condition"),
        lambda line: line.update(condition=-1),
        lambda line: line.update(condition=99),
        lambda line: line.update(condition="0"),
        lambda line: line.update(condition=0.0),
        lambda line: line.update(condition=1),  # its prompt and kernels, but another count
        lambda line: line.update(trial=-1),
        lambda line: line.update(trial=2**40),
        lambda line: line.update(request=None),
        lambda line: line.update(fingerprint="sha256:00"),
        lambda line: line.update(fingerprint=[]),
        lambda line: line.update(fingerprint=None),  # a failure that was not recorded
        lambda line: line.update(observed_batch=7),
        lambda line: line.update(observed_batch={}),
        lambda line: line.update(logprob_digest="not hex"),
        lambda line: line.update(logprob_digest="1" * 17),
        lambda line: line.update(noise="loud"),
        lambda line: b"[]",
        lambda line: b"7,7",
        lambda line: b"",
        lambda line: b"[" * 5000,
        lambda line: b"\xff",
    ],
)
def test_a_malformed_completion_is_one_sentence(
    copy: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    edit_line(copy, COMPLETIONS_FILE, edit)
    with pytest.raises(RunDirectoryError) as caught:
        load(copy)
    assert one_sentence(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda line: line["token_ids"].append(1),
        lambda line: line["token_ids"].__setitem__(0, 1.5),
        lambda line: line["token_ids"].__setitem__(0, 2**31),
        lambda line: line["token_ids"].__setitem__(0, -(2**31) - 1),
        lambda line: line["token_ids"].__setitem__(0, [1]),
        lambda line: line.update(token_ids="abc"),
        lambda line: line.update(token_ids=7),
        lambda line: line.update(token_ids=None),
        lambda line: line.update(fingerprint="sha256:00"),
        lambda line: line.update(prompt_index=1),
        lambda line: line.update(prompt_index=-1),
        lambda line: line.update(prompt_index="0"),
        lambda line: line.update(text=7),
        lambda line: line.pop("text"),
        lambda line: line["gaps"].pop(),
        lambda line: line["gaps"].__setitem__(0, "wide"),
        lambda line: line["token_ends"].pop(),
        lambda line: line["runner_up_token_ids"].pop(),
        lambda line: b"null",
    ],
)
def test_a_malformed_variant_is_one_sentence(
    copy: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    edit_line(copy, VARIANTS_FILE, edit)
    with pytest.raises(RunDirectoryError) as caught:
        load(copy)
    assert one_sentence(caught.value)


def test_damage_names_its_line(copy: Path) -> None:
    edit_line(copy, COMPLETIONS_FILE, lambda line: line.update(trial="first"))
    with pytest.raises(RunDirectoryError, match="damaged at line 1"):
        load(copy)


def test_the_same_variant_twice_is_refused(copy: Path) -> None:
    edit_line(copy, VARIANTS_FILE, lambda line: dump_line(line) + dump_line(line)[:-1])
    with pytest.raises(RunDirectoryError, match="line 2 is there twice"):
        load(copy)


def test_a_variant_of_another_prompt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run = record(path, None, small_experiment(prompts=("One?", "Two?")))
    other = next(v.fingerprint for v in run.variants if v.prompt_index == 1)
    with (path / COMPLETIONS_FILE).open("ab") as file:
        file.write(b'{"condition": 0, "trial": 99')  # where edit_line cuts
    edit_line(path, COMPLETIONS_FILE, lambda line: line.update(fingerprint=other))
    with pytest.raises(RunDirectoryError, match="damaged at line 1"):
        load(path)
