"""The lines that prompts are found on, and prompts whose line is left open."""

from __future__ import annotations

from pathlib import Path

import pytest

from detcheck.cli.prompt_places import prompt_places
from detcheck.cli.settings import find_settings

CASES = {
    "one line each": ('prompts = [\n  "Why?",\n  "How?",\n]', {"Why?": 4, "How?": 5}),
    "all in one line": ("prompts = ['Why?', \"How?\"]", {"Why?": 3, "How?": 3}),
    "a comment holds it too": ('# "Why?"\nprompts = ["Why?"] # "Why?"', {"Why?": 4}),
    "another key holds it too": ('prompts = [\n"Why?"]\n[gate]\nmodel = "Why?"', {"Why?": 4}),
    "a part of another": ('prompts = ["Why? Why?",\n"Why?"]', {"Why? Why?": 3, "Why?": 4}),
    "escaped": ('prompts = ["A\\n\\"B\\" \\\\ é"]', {'A\n"B" \\ é': 3}),
    "in Windows lines": ('prompts = [\r\n"Why?"]', {"Why?": 4}),
    "escaped as no writer does": ('prompts = ["\\u0057hy?", "How?"]', {"How?": 3}),
    "several lines": ('prompts = ["""\nWhy?""", "How?"]', {"How?": 4}),
    "what divides strings": ('prompts = ["a", ", "]', {"a": 3, ", ": 3}),
    "what divides others": ('kernels = ["stock", "fully-invariant"]\nprompts = [", "]', {}),
    "a sign of our own": ('prompts = ["\ue0000", "Why?"]', {"\ue0000": 3, "Why?": 3}),
    "none": ("completions = 8", {}),
}


def places(file: Path, text: str, head: str) -> dict[str, tuple[str, int]]:
    file.write_bytes(f"\n{head}\n{text}\n".encode())
    found = prompt_places(find_settings(file))
    return {prompt: (path.name, line) for prompt, (path, line) in found.items()}


@pytest.mark.parametrize(("text", "lines"), CASES.values(), ids=CASES)
def test_prompts_of_an_experiment_file(text: str, lines: dict[str, int], tmp_path: Path) -> None:
    found = places(tmp_path / "detcheck.toml", text, "[experiment]")
    assert found == {prompt: ("detcheck.toml", line) for prompt, line in lines.items()}


def test_prompts_of_a_pyproject(tmp_path: Path) -> None:
    found = places(tmp_path / "pyproject.toml", 'prompts = ["Why?"]', "[tool.detcheck.experiment]")
    assert found == {"Why?": ("pyproject.toml", 3)}


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("p.txt", "Why?\n\nHow?\n", {"Why?": 1, "How?": 3}),
        ("p.jsonl", '\n{"prompt": "Why?"}\n"How?"\n', {"Why?": 2, "How?": 3}),
        ("p.csv", 'prompt\n"Why\nnot?"\nHow?\n', {"Why\nnot?": 2, "How?": 4}),
    ],
)
def test_prompts_of_a_prompts_file(
    name: str, content: str, lines: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    text = f'prompts-file = "{name}"\nprompts = ["Mine?"]'
    found = places(tmp_path / "detcheck.toml", text, "[experiment]")
    expected = {prompt: (name, line) for prompt, line in lines.items()}
    assert found == {"Mine?": ("detcheck.toml", 4), **expected}
