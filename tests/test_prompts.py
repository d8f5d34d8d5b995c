"""Prompts from a file; each fault is reported with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.errors import UsageError
from detcheck.prompts import check_text, read_prompts


@pytest.fixture
def file(tmp_path: Path):
    """Returns a function: name, content -> path."""

    def file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


def test_text_has_one_prompt_a_line(file) -> None:
    path = file("prompts.txt", "Why?\n\n  How?  \nQui êtes-vous ?")
    assert read_prompts(path) == ("Why?", "How?", "Qui êtes-vous ?")


def test_json_lines_are_strings_or_objects(file) -> None:
    path = file("prompts.jsonl", '"Why?"\n\n{"prompt": "How?\\nAnd when?", "id": 7}\n')
    assert read_prompts(path) == ("Why?", "How?\nAnd when?")


@pytest.mark.parametrize("suffix", [".ndjson", ".jsonlines", ".jl", ".NDJSON"])
def test_other_names_of_json_lines_are_read_alike(file, suffix: str) -> None:
    path = file(f"prompts{suffix}", '{"prompt": "Why?"}\n"How?"\n')
    assert read_prompts(path) == ("Why?", "How?")


def test_text_that_only_partly_looks_like_json_is_asked_as_it_is(file) -> None:
    lines = ('{"prompt": "Repair this JSON."}', "Why?", '{"answer": 7}')
    assert read_prompts(file("prompts.txt", "\n".join(lines))) == lines
    assert read_prompts(file("prompts.md", lines[2])) == (lines[2],)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.JSONL"])
def test_byte_order_mark_and_carriage_returns_are_removed(file, name: str) -> None:
    lines = ['"Why?"', '"How?"'] if name.endswith("L") else ["Why?", "How?"]
    path = file(name, b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert read_prompts(path) == ("Why?", "How?")


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0c", "\x1d"])
def test_only_a_line_feed_ends_a_line(file, separator: str) -> None:
    assert read_prompts(file("a.txt", f"one{separator}prompt")) == (f"one{separator}prompt",)
    if separator >= " ":  # JSON allows no raw control characters
        assert read_prompts(file("a.jsonl", f'"one{separator}prompt"')) == (
            f"one{separator}prompt",
        )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "", "p.txt holds no prompts: write one a line."),
        ("p.jsonl", " \n\n", "p.jsonl holds no prompts"),
        ("p.jsonl", '"a"\n\n{"prompt": "b"', "p.jsonl line 3 is not valid JSON"),
        ("p.jsonl", "[" * 100_000, "p.jsonl line 1 is not valid JSON"),
        ("p.jsonl", '"a"\n7', 'p.jsonl line 2 is neither a string nor {"prompt": "…"}.'),
        ("p.jsonl", '{"text": "a"}', "p.jsonl line 1 is neither"),
        ("p.jsonl", '{"prompt": " "}', "p.jsonl line 1 is neither"),
        ("p.jsonl", '"a"\n"\\ud800"', "p.jsonl line 2 is not valid Unicode text"),
        ("p.txt", b"fine\nb\xe9", "p.txt line 2 is not UTF-8 text: save it as UTF-8."),
        ("p.ndjson", '"a"\n{"text": "b"}', "p.ndjson line 2 is neither a string nor"),
        ("p.json", '["a"]', "p.json is neither text nor JSON lines"),
        ("p.csv", "prompt\nWhy?", "p.csv is neither text nor JSON lines"),
        ("p.YAML", "- Why?", "p.YAML is neither text nor JSON lines"),
        ("p.jsonl.gz", b"\x1f\x8b", "p.jsonl.gz is neither text nor JSON lines"),
        ("p.txt", "Why?\nHow?\n\nWhy?", "p.txt lines 1 and 4 are the same prompt"),
        ("p.jsonl", '{"prompt": "a"}\n"b"\n"a"', "p.jsonl lines 1 and 3 are the same prompt"),
        ("p.txt", '\n{"prompt": "a"}\n{"prompt": "b"}', "p.txt line 2 is a JSON object"),
    ],
)
def test_message_names_the_fault_and_its_line(file, name: str, content, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_prompts(file(name, content))
    assert words in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no prompts file .*p.txt"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        read_prompts(tmp_path)


def test_command_line_text_that_is_not_utf8_is_refused() -> None:
    assert check_text("Qui ?", "Prompt 1") == "Qui ?"
    with pytest.raises(UsageError, match="Prompt 1 is not valid Unicode text"):
        check_text(b"\xff".decode(errors="surrogateescape"), "Prompt 1")


@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_prompt_survives_json_lines(tmp_path_factory, prompts: list[str]) -> None:
    import json

    texts = list(dict.fromkeys(text for text in prompts if text.strip()))
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    path.write_text("\n".join(json.dumps(text) for text in texts), encoding="utf-8")
    if texts:
        assert read_prompts(path) == tuple(texts)
