"""Files of `results/` that pages show: mkdocs copies them from where the experiments keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = (
    "results/*/table.md",
    "results/*/report.html",
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
