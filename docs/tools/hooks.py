"""What mkdocs does besides rendering: it adds files of `results/`, and keeps options unbroken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FLAG = re.compile(r"(?<=[ >])--?[a-z][a-z-]*(?=[^<]*</code>)")
ROOT = Path(__file__).resolve().parents[2]
PATTERNS = (
    "results/*/table.md",
    "results/*/*/table.md",
    "results/*/*/summary.md",
    "results/*/embedded/*.svg",
    "results/*/README.md",
    "results/*/roofline.md",
    "results/*/report.html",
    "results/*/*/report.html",
    "results/*/figures/*.svg",
    "results/*/*.svg",
)


def on_files(files: Files, config: Any) -> Files:
    """Add the measured pictures, reports and tables to the site, under `results/`."""
    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Keep each option in code on one line: browsers break after its hyphens."""
    return FLAG.sub(r'<span class="flag">\g<0></span>', html)
