"""Prompts from a file, or from stdin.

    .txt                         one prompt a line; without a suffix as stdin
    .jsonl, .ndjson              a string, {"prompt": …} or {"messages": […]} a line
    .csv, .tsv                   a table with a header, one column of which is `prompt`
    samples_….jsonl              a samples file of lm-evaluation-harness
    -                            stdin: JSON lines if its first line is a JSON object or string, a
                                 table if it is a header with `prompt`

A row may also have `id`, `answer`, `until` and any other field; see `PromptItem`.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detcheck.errors import UsageError
from detcheck.prompts.item import PromptItem, PromptSet
from detcheck.prompts.lm_eval import array_items, is_sample, sample_row
from detcheck.prompts.rows import FileRow, json_row
from detcheck.text import count

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines", ".jl", ".ldjson")
"""Suffixes of files that hold one JSON value a line."""
TEXT = (".txt", ".text", ".md", ".prompts")
TABLES = {".csv": ",", ".tsv": "\t"}
"""Suffixes of tables, and what divides their cells."""
STDIN = Path("-")


def read_prompts(path: Path) -> PromptSet:
    """The prompts in `path`, in order; blank lines are skipped. `-` is stdin.

    Raises UsageError if the file is missing, empty, of another format, or broken; if it holds a
    prompt or an id twice; or if some of its prompts have an answer and others do not. The message
    names the line.
    """
    name = "stdin" if path == STDIN else str(path)
    suffix = path.suffix.lower()
    if suffix and suffix not in (*JSON_LINES, *TEXT, *TABLES):
        raise UsageError(
            f"{name} has a suffix that is not known: give .txt (one prompt a line), .jsonl or "
            ".ndjson (one JSON value a line), .csv or .tsv (a table with a header)."
        )
    text = _stdin() if path == STDIN else _text(path)
    if not text.strip():
        raise UsageError(f"{name} holds no prompts: write one a line.")
    rows = list(_rows(name, suffix, text))
    if not rows:
        raise UsageError(f"{name} holds no prompts: write one a line.")
    rows = _merged_samples(rows)
    _refuse_duplicates(name, rows)
    _refuse_missing_answers(rows)
    if len({row.as_sent for row in rows}) > 1:
        other = next(row for row in rows if row.as_sent != rows[0].as_sent)
        raise UsageError(
            f"{other.place} and line {rows[0].line} differ in kind: one is the text that a model "
            "was sent, the other is not. Give each its own file."
        )
    items = tuple(row.item for row in rows)
    kept = items if any(item != PromptItem() for item in items) else ()
    prompts, lines = zip(*((row.prompt, row.line) for row in rows), strict=True)
    return PromptSet(prompts, kept, rows[0].as_sent, lines)


def _rows(name: str, suffix: str, text: str) -> Iterator[FileRow]:
    """The rows of a file, by its suffix; without one, by its first line."""
    delimiter = TABLES.get(suffix) or (None if suffix else _delimiter(text))
    if delimiter is not None:
        return _table_rows(name, text, delimiter)
    # Only line feeds end a line: JSON strings may hold the other characters that splitlines() cuts.
    lines = [line.strip() for line in text.split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    items = array_items(text) if not suffix or suffix in JSON_LINES else []
    if items and _holds_prompt(items[0][1]):
        return _array_rows(name, items)
    if suffix in JSON_LINES or (not suffix and numbered and _is_json(numbered[0][1])):
        return (_json_line(name, number, line) for number, line in numbered)
    _refuse_json(name, numbered)
    return (FileRow(f"{name} line {n}", n, line, PromptItem()) for n, line in numbered)


def _array_rows(name: str, items: Sequence[tuple[int, Any]]) -> Iterator[FileRow]:
    """The rows of a samples file that is one JSON array, as the harness wrote it before 0.4.3."""
    for number, value in items:
        if not is_sample(value):
            raise UsageError(f"{name} is one JSON array: write one JSON value a line.")
        yield sample_row(value, f"{name} line {number}", number)


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8("stdin", error) from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"There is no prompts file {path}: check the path.") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(str(path), error) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error


def _not_utf8(name: str, error: UnicodeDecodeError) -> UsageError:
    line = error.object.count(b"\n", 0, error.start) + 1
    return UsageError(f"{name} line {line} is not UTF-8 text: save it as UTF-8.")


def _json_line(name: str, number: int, line: str) -> FileRow:
    """The prompt in one JSON line."""
    place = f"{name} line {number}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not valid JSON ({error}).") from error
    return (sample_row if is_sample(value) else json_row)(value, place, number)


def _table_rows(name: str, text: str, delimiter: str) -> Iterator[FileRow]:
    """The rows of a table with a header, whose cells may hold line breaks in quotation marks."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    before = 0
    usual_limit = csv.field_size_limit(len(text) + 1)  # a long context may exceed Python's limit
    try:
        for cells in reader:
            first, before = before + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(name, cells)
                continue
            place = f"{name} line {first}"
            if len(cells) != len(header):
                raise UsageError(
                    f"{place} has {count(len(cells), 'cell')} and the header {len(header)}: put "
                    "cells that hold the delimiter, a quotation mark or a line break in quotation "
                    "marks."
                )
            yield json_row(dict(zip(header, cells, strict=True)), place, first)
    except csv.Error as error:
        raise UsageError(f"{name} line {before + 1} is no row of a table ({error}).") from error
    finally:
        csv.field_size_limit(usual_limit)


def _header(name: str, cells: Sequence[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    if "prompt" not in header:
        raise UsageError(
            f"{name} has no column `prompt` in its header ({', '.join(header)[:80]}): name the "
            "column of the questions so, and divide cells by commas (.csv) or tabs (.tsv)."
        )
    for column in header:
        if header.count(column) > 1:
            raise UsageError(f"{name} has two columns {column!r}: keep one of them.")
    if "messages" in header:
        raise UsageError(f"{name} has a column 'messages': write chats as .jsonl.")
    return header


def _delimiter(text: str) -> str | None:
    """What divides the cells of a text whose first line is the header of a table, else None."""
    header = text.lstrip().partition("\n")[0]
    for delimiter in TABLES.values():
        cells = [cell.strip(' \r"') for cell in header.split(delimiter)]
        if len(cells) > 1 and "prompt" in cells:
            return delimiter
    return None


def _is_json(line: str) -> bool:
    if not line.startswith(("{", '"')):
        return False
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, str) or _holds_prompt(value)


def _holds_prompt(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return "prompt" in value or "messages" in value or is_sample(value)


def _refuse_json(name: str, numbered: Sequence[tuple[int, str]]) -> None:
    """Raise UsageError if every line of a text file is a JSON object with a prompt in it."""
    if all(line.startswith("{") and _is_json(line) for _, line in numbered):
        raise UsageError(
            f"{name} line {numbered[0][0]} is a JSON object that holds a prompt: give the file a "
            "name that ends in .jsonl, so that the prompt alone is asked."
        )


def _merged_samples(rows: Sequence[FileRow]) -> list[FileRow]:
    """The rows without the repeats of an item that a samples file has once for each filter."""
    seen: set[tuple[str | None, str]] = set()
    kept = []
    for row in rows:
        key = (row.item.id, row.prompt)
        if key in seen and not {"filter", "filtered_resps"}.isdisjoint(row.item.fields):
            continue
        seen.add(key)
        kept.append(row)
    return kept


def _refuse_duplicates(name: str, rows: Sequence[FileRow]) -> None:
    prompts: dict[str, int] = {}
    ids: dict[str, int] = {}
    for row in rows:
        first = prompts.setdefault(row.prompt, row.line)
        if first != row.line:
            raise UsageError(f"{name} lines {first} and {row.line} are the same prompt: drop one.")
        if row.item.id is not None:
            first = ids.setdefault(row.item.id, row.line)
            if first != row.line:
                raise UsageError(
                    f"{name} lines {first} and {row.line} have the same id {row.item.id!r}: give "
                    "each prompt its own."
                )


def _refuse_missing_answers(rows: Sequence[FileRow]) -> None:
    with_answer = next((row for row in rows if row.item.answer is not None), None)
    without = next((row for row in rows if row.item.answer is None), None)
    if with_answer is not None and without is not None:
        raise UsageError(
            f"{without.place} has no answer, and line {with_answer.line} has one: give every "
            "prompt an answer, or none."
        )
