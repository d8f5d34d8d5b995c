"""The report as one HTML file that loads nothing, runs nothing and fits a phone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from detcheck.analysis.results import Analysis
from detcheck.report.answers import six_answers
from detcheck.report.checks import bounds, checks
from detcheck.report.figure_style import Drawing, adaptive_css
from detcheck.report.glossary import GLOSSARY
from detcheck.report.reproduce import command
from detcheck.report.text import came_back, factor, number, percent
from detcheck.report.view import (
    Limits,
    about,
    environment_rows,
    flip_reason,
    headline,
    prompt_views,
)
from detcheck.text import HIDDEN, cap, count, stand_in

LIMITS = Limits(leaves=48, depth=24, children=10, variants=25, partings=12)
TREE = "prefix_tree"


def render(
    analysis: Analysis,
    drawings: Mapping[int, Sequence[Drawing]],
    probes: Sequence[Drawing] = (),
) -> str:
    """The whole page; `drawings` by prompt index, `probes` of the ops that lie behind them."""
    sections = [
        {
            "view": view,
            "wide": _svgs(drawings.get(view.prompt_index, ()), wide=True),
            "figures": _svgs(drawings.get(view.prompt_index, ()), wide=False),
        }
        for view in prompt_views(analysis, LIMITS)
    ]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=analysis.run,
            headline=headline(analysis),
            about=about(analysis),
            answers=six_answers(analysis),
            checks=checks(analysis),
            bounds=bounds(analysis),
            prompts=sections,
            probes=[Markup(drawing.body) for drawing in probes],
            command=command(analysis.run.experiment, analysis.run.target),
            environment=environment_rows(analysis.run.environment),
            glossary=GLOSSARY,
            css=_css(),
        )
    )


def words(text: str, limit: int | None = None, lines: bool = False) -> Markup:
    """Untrusted text as inline HTML: escaped, isolated, invisible characters shown, capped.

    With `lines`, line breaks are kept as such instead of being shown as marks.
    """
    shown, more = cap(str(text), limit)
    parts: list[Markup] = []
    end = 0
    for match in HIDDEN.finditer(shown):
        parts.append(escape(shown[end : match.start()]))
        parts.append(_mark(match.group(), lines))
        end = match.end()
    parts.append(escape(shown[end:]))
    note = Markup('<span class="more">{}</span>').format(more) if more else Markup("")
    return Markup('<bdi class="said">{}</bdi>{}').format(Markup("").join(parts), note)


def _mark(char: str, lines: bool) -> Markup:
    if lines and char == "\n":
        return Markup("\n")
    return Markup('<span class="ctl">{}</span>').format(stand_in(char))


def quote(text: str, limit: int) -> Markup:
    """A prompt in quotation marks."""
    return Markup("“{}”").format(words(text, limit))


def piece(text: str) -> Markup:
    """The next words of an answer, or that it ends."""
    return words(text, 200) if text else Markup("<small>(ends here)</small>")


def first_words(text: str) -> tuple[str, str]:
    """The first few words, which are what people look for, and the rest."""
    match = re.match(r"\s*(?:\S{1,40}\s+){0,2}\S{1,40}", text)
    end = match.end() if match else min(len(text), 40)
    return text[:end].lstrip(" "), text[end:]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("detcheck.report"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        words=words,
        quote=quote,
        piece=piece,
        first_words=first_words,
        came_back=came_back,
        why=flip_reason,
        count=count,
        factor=factor,
        number=number,
        percent=percent,
    )
    return environment


def _css() -> Markup:
    sheet = files("detcheck.report").joinpath("templates/report.css").read_text("utf-8")
    return Markup(sheet + adaptive_css("figure svg"))


def _svgs(drawings: Sequence[Drawing], *, wide: bool) -> list[Markup]:
    """SVG that detcheck drew itself, in which text is escaped already."""
    return [Markup(d.body) for d in drawings if d.name.endswith(TREE) is wide]
