"""Prompts from a file, and where in it something is wrong."""

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


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.JSONL"])
def test_what_windows_editors_add_is_no_part_of_a_prompt(file, name: str) -> None:
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
        ("p.json", '["a"]', "p.json is not .jsonl or .txt"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(file, name: str, content, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_prompts(file(name, content))
    assert words in str(caught.value)


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no prompts file .*p.txt"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        read_prompts(tmp_path)


def test_text_of_a_command_line_that_is_not_utf8_is_refused() -> None:
    assert check_text("Qui ?", "Prompt 1") == "Qui ?"
    with pytest.raises(UsageError, match="Prompt 1 is not valid Unicode text"):
        check_text(b"\xff".decode(errors="surrogateescape"), "Prompt 1")


@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_prompt_survives_json_lines(tmp_path_factory, prompts: list[str]) -> None:
    import json

    texts = [text for text in prompts if text.strip()]
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    path.write_text("\n".join(json.dumps(text) for text in texts), encoding="utf-8")
    if texts:
        assert read_prompts(path) == tuple(texts)
