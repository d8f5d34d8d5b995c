"""The raw files are linked from wherever the report lies, and no name can be another link."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from detcheck.analysis.results import Analysis
from detcheck.report.raw_files import raw_files
from detcheck.report.write import render_files


@pytest.mark.parametrize("name", ["run", "a run", "javascript:alert(1)", "http:", "50%25 #?&<b>"])
def test_links_lead_to_the_files(tmp_path: Path, name: str) -> None:
    run, folder = tmp_path / name, tmp_path / "reports" / "one"
    run.mkdir()
    folder.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (file,) = raw_files(run, folder, [])
    parts = urlsplit(file.href)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
    assert (folder / unquote(parts.path)).resolve() == (run / "run.json").resolve()


def test_files_written_beside_the_report_are_linked_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (file,) = raw_files(tmp_path / "run", tmp_path / "out", ["variants.csv", "report.html"])
    assert (file.name, file.href) == ("variants.csv", "variants.csv")


def test_the_page_links_the_raw_files_of_its_run(story: Analysis, tmp_path: Path) -> None:
    page = render_files(story, ("html", "csv"), tmp_path)["report.html"]
    links = re.findall(r'href="([^"#][^"]*)"', page)
    names = [link.rsplit("/", 1)[-1] for link in links]
    assert {"run.json", "completions.jsonl", "variants.jsonl", "variants.csv"} <= set(names)
    assert all(link.endswith("csv") or (tmp_path / link).is_file() for link in links)
