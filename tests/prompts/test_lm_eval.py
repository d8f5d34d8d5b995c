"""A samples file of lm-evaluation-harness as prompts: what was sent, and the right answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detcheck.errors import UsageError
from detcheck.prompts import ChatMessage, PromptSet, read_prompts


def sample(number: int, **members: Any) -> dict[str, Any]:
    """A line as version 0.4.9 writes it for a task that generates."""
    sent = {"arg_0": f"Q: {number} + 2?\nA: ", "arg_1": {"until": ["\n", "Q:"], "do_sample": False}}
    return {
        "doc_id": number,
        "doc": {"question": f"{number} + 2?"},
        "target": str(number + 2),
        "arguments": {"gen_args_0": sent},
        "resps": [["5"]],
        "filtered_resps": ["5"],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "exact_match": 1.0,
    } | members


def read(folder: Path, *lines: Any) -> PromptSet:
    path = folder / "samples_task_2026-11-26T00-00-00.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return read_prompts(path)


def test_the_prompt_is_what_was_sent_and_the_target_is_the_answer(tmp_path: Path) -> None:
    found = read(tmp_path, sample(1), sample(2))
    assert found.prompts == ("Q: 1 + 2?\nA: ", "Q: 2 + 2?\nA: ")
    assert [(item.id, item.answer) for item in found.items] == [("1", "3"), ("2", "4")]
    assert found.items[0].until == ("\n", "Q:")
    assert found.items[0].fields["doc"] == {"question": "1 + 2?"}
    assert found.as_sent


def test_an_item_under_several_filters_is_one_prompt(tmp_path: Path) -> None:
    found = read(tmp_path, sample(1), sample(1, filter="flexible-extract"), sample(2))
    assert [item.id for item in found.items] == ["1", "2"]


def test_one_array_of_early_versions_is_read(tmp_path: Path) -> None:
    """Versions before 0.4.3 write one indented array, and name no filter."""
    lines = [sample(number, arguments=[[f"Q: {number}?", {}]]) for number in (1, 2, 1, 2)]
    for line in lines:
        del line["filter"]
    path = tmp_path / "out_task.jsonl"
    path.write_text(json.dumps(lines, indent=2), encoding="utf-8")
    found = read_prompts(path)
    assert (found.prompts, found.as_sent) == (("Q: 1?", "Q: 2?"), True)
    path.write_text(json.dumps([*lines, {"doc_id": 3}], indent=2), encoding="utf-8")
    with pytest.raises(UsageError, match=r"line \d+ is not an item .* \(it has no arguments\)"):
        read_prompts(path)


def test_another_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('[\n{"prompt": "Why?"}\n]', encoding="utf-8")
    with pytest.raises(UsageError, match="is one JSON array: write one JSON value a line"):
        read_prompts(path)


@pytest.mark.parametrize("wrap", [lambda chat: chat, lambda chat: [chat]], ids=["text", "list"])
def test_a_chat_is_logged_as_json_and_sent_as_a_chat(tmp_path: Path, wrap) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1 + 2?"}]
    sent = {"gen_args_0": {"arg_0": wrap(json.dumps(chat)), "arg_1": {}}}
    found = read(tmp_path, sample(1, arguments=sent))
    assert found.items[0].messages == (
        ChatMessage("system", "Be short."),
        ChatMessage("user", "1 + 2?"),
    )
    assert not found.as_sent


def test_the_right_one_of_several_continuations_is_the_answer(tmp_path: Path) -> None:
    choices = {
        f"gen_args_{n}": {"arg_0": "Sky?\nAnswer:", "arg_1": f" {letter}"}
        for n, letter in enumerate("ABC")
    }
    found = read(tmp_path, sample(1, arguments=choices, target=2))
    assert (found.prompts, found.items[0].answer) == (("Sky?\nAnswer:",), "C")
    older = [[["Sky?\nAnswer:", " A"], ["Sky?\nAnswer:", " B"]]]
    found = read(tmp_path, sample(1, arguments=older[0], target="1"))
    assert found.items[0].answer == "B"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"doc_id": 1, "logit_0": -3.2}, "0.4 or later (it has no arguments): write it with"),
        (sample(1, arguments="Q: 1 + 2?"), "its arguments are neither a list nor an object"),
        (sample(1, arguments={}), "it holds no request"),
        (sample(1, arguments=[[7, {}]]), "line 1 holds no text that was sent"),
        (
            {name: value for name, value in sample(1).items() if name != "doc_id"},
            "it has no doc_id",
        ),
    ],
)
def test_a_file_of_another_version_is_refused(tmp_path: Path, line: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, line)
    assert words in str(caught.value)
    assert "line 1" in str(caught.value)


def test_text_that_was_sent_does_not_go_with_other_prompts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2 and line 1 differ in kind"):
        read(tmp_path, sample(1), {"prompt": "Why?", "answer": 1})


def test_a_choice_among_prompts_is_refused(tmp_path: Path) -> None:
    """Winogrande's choices have the same continuation after two texts; none of them is a question.
    A continuation without its prompt is scored beside the others for acc_mutual_info."""
    winogrande = [["The trophy", " is big."], ["The case", " is big."]]
    with pytest.raises(UsageError, match="line 1 is a choice among different prompts"):
        read(tmp_path, sample(1, arguments=winogrande, target="0"))
    mutual = [["Sky?", " red"], ["Sky?", " blue"], ["", " red"], ["", " blue"]]
    found = read(tmp_path, sample(1, arguments=mutual, target="1"))
    assert (found.prompts, found.items[0].answer) == (("Sky?",), "blue")
