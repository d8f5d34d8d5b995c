"""The report as one HTML file that loads nothing and fits a phone.

Its only script compares two variants; the page's content policy names it by its hash, so that no
other script can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from detcheck.report import markup
from detcheck.report.figure_style import Drawing, adaptive_css
from detcheck.report.glossary import GLOSSARY
from detcheck.report.prefix_tree import Branch, TreeLimits, prune
from detcheck.report.prompt_view import GroupView, PromptView
from detcheck.report.raw_files import RawFile
from detcheck.report.view import ReportView

MAX_SECTIONS = 20
"""Prompts that get a whole section; those that vary less get a few lines."""
MAX_TABLE_ROWS = 30
"""Rows of the table of prompts that are shown at first."""
OPEN_DEPTH = 3
"""Branches of the tree deeper than this are folded at first."""


@dataclass(frozen=True, slots=True)
class Detail:
    """How much is shown of one prompt."""

    tree: TreeLimits
    variants: int
    """Variants of each kernels setting."""
    visible: int
    """Variants that are not folded away."""
    characters: int
    """Of each answer."""
    places: int


ONLY = Detail(TreeLimits(48, 24, 10), variants=100, visible=10, characters=8000, places=12)
SEVERAL = Detail(TreeLimits(24, 12, 8), variants=20, visible=5, characters=2500, places=6)
BRIEF = Detail(TreeLimits(0, 0, 0), variants=3, visible=3, characters=160, places=0)


@dataclass(frozen=True, slots=True)
class GroupSection:
    """One prompt and kernels setting, cut to the content of its section."""

    view: GroupView
    tree: Branch | None
    """None if nothing diverged, and so a tree would show nothing."""


@dataclass(frozen=True, slots=True)
class Section:
    """One prompt with its figures, cut to the content of the page."""

    view: PromptView
    groups: tuple[GroupSection, ...]
    detail: Detail
    wide: tuple[Drawing, ...]
    figures: tuple[Drawing, ...]
    open: bool
    """If false, it is folded at first."""

    @property
    def loud(self) -> bool:
        """True if it stands by itself: the only prompt, or one that is not quiet."""
        return self.detail is ONLY or not self.view.row.quiet

    @property
    def brief(self) -> bool:
        """True if it has only a few lines."""
        return self.detail is BRIEF

    @property
    def contents(self) -> tuple[tuple[str, str], ...]:
        """(end of the anchor, title) of the parts that it has."""
        view = self.view
        several = sum(group.distinct for group in view.listed) > 1
        parts = (
            ("tree", "picture", bool(self.wide)),
            ("beside", "cure beside stock", view.beside is not None),
            ("branches", "where they diverge", any(group.tree for group in self.groups)),
            ("figures", "figures", bool(self.figures)),
            ("seeds", "seeds", view.seeds is not None),
            ("batches", "by batch size", True),
            ("variants", "variants", bool(view.listed)),
            ("compare", "compare two", several),
            ("branchings", "branchings", any(group.places for group in view.groups)),
        )
        return tuple((name, title) for name, title, present in parts if present)


def render(
    view: ReportView,
    drawings: Mapping[int, Sequence[Drawing]],
    probes: Sequence[Drawing] = (),
    raw_files: Sequence[RawFile] = (),
) -> str:
    """The whole page; `drawings` by prompt index, `probes` of `detcheck ops` and `trace`."""
    sections = tuple(
        _section(prompt, rank, len(view.prompts), drawings.get(prompt.prompt_index, ()))
        for rank, prompt in enumerate(view.prompts)
    )
    script = _template("compare.js")
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            view=view,
            sections=sections,
            varied=[section for section in sections[:MAX_SECTIONS] if section.loud],
            more=[section for section in sections[MAX_SECTIONS:] if section.loud],
            quiet=[section for section in sections if not section.loud],
            first_rows=view.rows[:MAX_TABLE_ROWS],
            more_rows=view.rows[MAX_TABLE_ROWS:],
            probes=probes,
            raw_files=raw_files,
            glossary=GLOSSARY,
            open_depth=OPEN_DEPTH,
            css=Markup(stylesheet()),
            script=Markup(script),
            script_hash=script_hash(script),
        )
    )


def script_hash(script: str) -> str:
    """The source expression that allows just this script in a content policy."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _section(
    prompt: PromptView, rank: int, num_prompts: int, drawings: Sequence[Drawing]
) -> Section:
    detail = ONLY if num_prompts == 1 else SEVERAL if rank < MAX_SECTIONS else BRIEF
    return Section(
        view=prompt,
        groups=tuple(_group_section(group, detail) for group in prompt.groups),
        detail=detail,
        wide=tuple(drawing for drawing in drawings if drawing.wide),
        figures=tuple(drawing for drawing in drawings if not drawing.wide),
        open=num_prompts == 1 or (rank == 0 and not prompt.row.quiet),
    )


def _group_section(group: GroupView, detail: Detail) -> GroupSection:
    grown = group.tree is not None and group.distinct > 1 and detail.tree.leaves
    return GroupSection(group, prune(group.tree, detail.tree) if grown and group.tree else None)


def environment() -> Environment:
    """Templates of the pages, with their filters; every value is escaped."""
    made = Environment(
        loader=PackageLoader("detcheck.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(markup.FILTERS)
    return made


def stylesheet() -> str:
    """The styles of every page, figures included."""
    return _template("report.css") + adaptive_css("figure svg")


def _template(name: str) -> str:
    return files("detcheck.report").joinpath(f"templates/{name}").read_text("utf-8")
