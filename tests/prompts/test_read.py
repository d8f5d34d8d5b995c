"""Prompts from a file; each fault is reported with its line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detcheck.errors import UsageError
from detcheck.prompts import ChatMessage, PromptItem, check_text, read_prompts


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
    assert read_prompts(path).prompts == ("Why?", "How?", "Qui êtes-vous ?")


def test_json_lines_are_strings_or_objects(file) -> None:
    path = file("prompts.jsonl", '"Why?"\n\n{"prompt": "How?\\nAnd when?", "id": 7}\n')
    assert read_prompts(path).prompts == ("Why?", "How?\nAnd when?")


@pytest.mark.parametrize("suffix", [".ndjson", ".jsonlines", ".jl", ".NDJSON"])
def test_other_names_of_json_lines_are_read_alike(file, suffix: str) -> None:
    path = file(f"prompts{suffix}", '{"prompt": "Why?"}\n"How?"\n')
    assert read_prompts(path).prompts == ("Why?", "How?")


def test_text_that_only_partly_looks_like_json_is_asked_as_it_is(file) -> None:
    lines = ('{"prompt": "Repair this JSON."}', "Why?", '{"answer": 7}')
    assert read_prompts(file("prompts.txt", "\n".join(lines))).prompts == lines
    assert read_prompts(file("prompts.md", lines[2])).prompts == (lines[2],)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.JSONL"])
def test_byte_order_mark_and_carriage_returns_are_removed(file, name: str) -> None:
    lines = ['"Why?"', '"How?"'] if name.endswith("L") else ["Why?", "How?"]
    path = file(name, b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert read_prompts(path).prompts == ("Why?", "How?")


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0c", "\x1d"])
def test_only_a_line_feed_ends_a_line(file, separator: str) -> None:
    assert read_prompts(file("a.txt", f"one{separator}prompt")).prompts == (
        f"one{separator}prompt",
    )
    if separator >= " ":  # JSON allows no raw control characters
        assert read_prompts(file("a.jsonl", f'"one{separator}prompt"')).prompts == (
            f"one{separator}prompt",
        )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "", "p.txt holds no prompts: write one a line."),
        ("p.jsonl", " \n\n", "p.jsonl holds no prompts"),
        ("p.jsonl", '"a"\n\n{"prompt": "b"', "p.jsonl line 3 is not valid JSON"),
        ("p.jsonl", "[" * 100_000, "p.jsonl line 1 is not valid JSON"),
        ("p.jsonl", '"a"\n7', 'p.jsonl line 2 is neither a string nor an object with "prompt"'),
        ("p.jsonl", '{"text": "a"}', "p.jsonl line 1 has no prompt ('text'): give the text as"),
        ("p.jsonl", '{"prompt": " "}', "p.jsonl line 1 has no prompt"),
        ("p.jsonl", '{"prompt": "a", "messages": []}', 'line 1 has both "prompt" and "messages"'),
        ("p.jsonl", '{"messages": "hi"}', "p.jsonl line 1 has messages that are no chat"),
        ("p.jsonl", '{"messages": [{"role": "me", "content": "hi"}]}', "that are no chat"),
        ("p.jsonl", '{"messages": []}', "chat that does not end with a question of the user"),
        (
            "p.jsonl",
            '{"messages": [{"role": "assistant", "content": "hi"}]}',
            "does not end with a question",
        ),
        ("p.jsonl", '{"prompt": "a", "answer": [1]}', '"answer" that is neither text nor a number'),
        ("p.jsonl", '{"prompt": "a", "until": 7}', 'line 1 has "until" that is no list of texts'),
        (
            "p.jsonl",
            '{"prompt": "a", "answer": 1}\n\n{"prompt": "b"}',
            "p.jsonl line 3 has no answer, and line 1 has one: give every prompt an answer",
        ),
        (
            "p.jsonl",
            '{"prompt": "a", "id": "q"}\n{"prompt": "b", "id": "q"}',
            "p.jsonl lines 1 and 2 have the same id 'q'",
        ),
        ("p.csv", "question,answer\nWhy?,1", "p.csv has no column `prompt` in its header"),
        ("p.csv", "prompt,prompt\nWhy?,1", "p.csv has two columns 'prompt'"),
        ("p.csv", "prompt,messages\nWhy?,1", "has a column 'messages': write chats as .jsonl"),
        ("p.csv", "prompt,answer\nWhy, then?,1", "p.csv line 2 has 3 cells and the header 2"),
        ("p.csv", 'prompt\n"Why?\nHow?', "p.csv line 2 is no row of a table"),
        ("p.csv", "prompt,answer\nWhy?,1\nHow?,", "p.csv line 3 has no answer, and line 2 has"),
        ("p.csv", "prompt,answer\n ,1", "p.csv line 2 has no prompt"),
        ("p.tsv", "prompt\tid\na\t1\nb\t1", "p.tsv lines 2 and 3 have the same id '1'"),
        ("p.csv", "prompt,answer\n", "p.csv holds no prompts"),
        ("p.jsonl", '{"prompt": "a", "answer": NaN}', 'line 1 has "answer" that is not a finite'),
        ("p.jsonl", '{"prompt": "a", "answer": 1e400}', 'line 1 has "answer" that is not a finite'),
        ("p.foo", "Why?", "p.foo has a suffix that is not known: give .txt"),
        ("p.jsonl", '"a"\n"\\ud800"', "p.jsonl line 2 is not valid Unicode text"),
        ("p.txt", b"fine\nb\xe9", "p.txt line 2 is not UTF-8 text: save it as UTF-8."),
        ("p.ndjson", '"a"\n{"text": "b"}', "p.ndjson line 2 has no prompt"),
        ("p.json", '["a"]', "p.json has a suffix that is not known"),
        ("p.YAML", "- Why?", "p.YAML has a suffix that is not known"),
        ("p.jsonl.gz", b"\x1f\x8b", "p.jsonl.gz has a suffix that is not known"),
        ("p.txt", "Why?\nHow?\n\nWhy?", "p.txt lines 1 and 4 are the same prompt"),
        ("p.jsonl", '{"prompt": "a"}\n"b"\n"a"', "p.jsonl lines 1 and 3 are the same prompt"),
        ("p.txt", '\n{"prompt": "a"}\n{"prompt": "b"}', "p.txt line 2 is a JSON object"),
    ],
)
def test_message_names_the_fault_and_its_line(file, name: str, content, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_prompts(file(name, content))
    assert words in str(caught.value)


def test_an_object_may_have_an_id_an_answer_a_chat_and_fields(file) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]
    lines = [
        {"prompt": "How?", "id": 7, "answer": 1.5, "until": ["\n"], "level": {"x": None}},
        {"messages": chat, "answer": "because"},
    ]
    read = read_prompts(file("p.jsonl", "\n".join(map(json.dumps, lines))))
    assert read.prompts == ("How?", "system: Be short.\nuser: Why?")
    assert read.items == (
        PromptItem(id="7", answer="1.5", until=("\n",), fields={"level": {"x": None}}),
        PromptItem(
            answer="because",
            messages=(ChatMessage("system", "Be short."), ChatMessage("user", "Why?")),
        ),
    )
    assert not read.as_sent


def test_prompts_that_are_nothing_but_text_have_no_items(file) -> None:
    assert read_prompts(file("p.jsonl", '"a"\n{"prompt": "b"}')).items == ()


def test_a_table_has_a_header_and_cells_of_several_lines(file) -> None:
    content = 'id,prompt,answer,topic\r\n1,"Why,\nthen?",6,sky\r\n\r\n2,How?,7,\r\n'
    read = read_prompts(file("p.csv", b"\xef\xbb\xbf" + content.encode()))
    assert read.prompts == ("Why,\nthen?", "How?")
    assert read.items[0] == PromptItem(id="1", answer="6", fields={"topic": "sky"})
    tabs = read_prompts(file("p.tsv", "prompt\tanswer\nWhy, then?\t6\n"))
    assert (tabs.prompts, tabs.items[0].answer) == (("Why, then?",), "6")


def test_the_line_of_a_row_is_its_first(file) -> None:
    """The rows begin at lines 2 and 4: the first has a line break in a cell."""
    with pytest.raises(UsageError, match="lines 2 and 4 have the same id"):
        read_prompts(file("p.csv", 'id,prompt\n1,"a\nb"\n1,c\n'))


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("Why?\nHow?\n", ("Why?", "How?")),
        ('{"prompt": "Why?"}\n"How?"', ("Why?", "How?")),
        ('{"answer": 7}\n', ('{"answer": 7}',)),
    ],
)
def test_stdin_is_text_or_json_lines(monkeypatch, content: str, prompts: tuple[str, ...]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert read_prompts(Path("-")).prompts == prompts


@pytest.mark.parametrize("content", ["prompt,answer\r\nWhy?,6\r\n", "answer\tprompt\n6\tWhy?\n"])
def test_stdin_may_be_a_table(monkeypatch, content: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    read = read_prompts(Path("-"))
    assert (read.prompts, read.items) == (("Why?",), (PromptItem(answer="6"),))


def test_a_cell_may_be_longer_than_the_limit_of_the_csv_module(file) -> None:
    usual = csv.field_size_limit()
    read = read_prompts(file("p.csv", f"prompt,answer\n{'long ' * 40_000}?,6\n"))
    assert len(read.prompts[0]) == 200_001 > usual
    assert csv.field_size_limit() == usual


def test_faults_of_stdin_name_it(monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}\n{"x')))
    with pytest.raises(UsageError, match="stdin line 2 is not valid JSON"):
        read_prompts(Path("-"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UsageError, match="stdin holds no prompts"):
        read_prompts(Path("-"))


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
    texts = list(dict.fromkeys(text for text in prompts if text.strip()))
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    path.write_text("\n".join(json.dumps(text) for text in texts), encoding="utf-8")
    if texts:
        assert read_prompts(path).prompts == tuple(texts)
