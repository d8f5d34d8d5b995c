"""Ways to damage a run directory."""

from __future__ import annotations

import json
import re
from pathlib import Path


def edit(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def drop_run_file(run: Path) -> None:
    (run / "run.json").unlink()


def truncate(run: Path) -> None:
    data = (run / "completions.jsonl").read_bytes()
    (run / "completions.jsonl").write_bytes(data[: len(data) // 2])


def newer_schema(run: Path) -> None:
    edit(run / "run.json", b'"schema_version": 2', b'"schema_version": 99')


def edited_answer(run: Path) -> None:
    edit(run / "variants.jsonl", b'"token_ids":[', b'"token_ids":[7,')


def edited_count(run: Path) -> None:
    data = (run / "run.json").read_bytes()
    (run / "run.json").write_bytes(re.sub(rb'"completed": \d+', b'"completed": 1', data))


def half_json(run: Path) -> None:
    data = (run / "run.json").read_bytes()
    (run / "run.json").write_bytes(data[: len(data) // 2])


def other_json(run: Path) -> None:
    (run / "run.json").write_text("[1, 2]", encoding="utf-8")


def missing_file(run: Path) -> None:
    (run / "variants.jsonl").unlink()


def dropped_condition(run: Path) -> None:
    document = json.loads((run / "run.json").read_bytes())
    del document["conditions"][-1]
    (run / "run.json").write_text(json.dumps(document), encoding="utf-8")


def smuggled_prompt_index(run: Path) -> None:
    edit(run / "run.json", b'"prompt_index": 0', b'"prompt_index": 9')
