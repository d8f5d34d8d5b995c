"""The report in a real browser: only its own script runs, nothing is fetched or overflows.

Each check is also held against a page that is broken on purpose, or its silence means nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from detcheck.analysis.results import Analysis
from detcheck.report.write import write_report

from . import hostile
from .browser import Page

DESKTOP = (1280, 800)
PHONE = (360, 740)
SCREENS = [pytest.param(DESKTOP, id="desktop"), pytest.param(PHONE, id="phone")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(attacked: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    return write_report(attacked, folder, ["html"])[0]


def problems(page: Page) -> set[str]:
    """What went wrong on the page that is open."""
    found = {
        "overflow": "document.documentElement.scrollWidth > window.innerWidth",
        "script": "window.pwned !== undefined || document.title === 'pwned'",
        "foreign": "document.querySelector('iframe, img, link, base, object') !== null"
        " || document.querySelectorAll('script').length > 1",
    }
    result = {name for name, expression in found.items() if page.evaluate(expression)}
    if page.methods("Page.javascriptDialogOpening"):
        result.add("dialog")
    urls = [event["request"]["url"] for event in page.methods("Network.requestWillBeSent")]
    if any(not url.startswith(("file:", "data:")) for url in urls) or len(urls) > 1:
        result.add("request")
    return result


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_hostile_answers_do_nothing(
    page: Page, report: Path, screen: tuple[int, int], dark: bool
) -> None:
    page.open(report, *screen, dark=dark)
    # Folded texts count too: open everything before looking.
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.querySelectorAll('.card').length") == 6
    assert problems(page) == set()
    assert not page.methods("Log.entryAdded"), "the content policy had nothing to block"


@pytest.mark.parametrize("name", ["story", "eighty", "several", "silent", "texts", "seeded"])
@pytest.mark.parametrize("screen", SCREENS)
def test_ordinary_reports_fit_and_the_first_screen_answers(
    page: Page,
    name: str,
    screen: tuple[int, int],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    page.open(write_report(request.getfixturevalue(name), tmp_path, ["html"])[0], *screen)
    assert problems(page) == set()
    bottom = page.evaluate("document.querySelector('.cards').getBoundingClientRect().bottom")
    assert bottom <= screen[1]


WORDS_OUTSIDE = """
    [...document.querySelectorAll('figure svg')].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1
                || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
        }).map(text => text.textContent);
    })
"""


@pytest.mark.parametrize("name", ["story", "eighty", "several", "texts", "seeded", "ablation"])
def test_no_word_of_a_figure_is_cut(
    page: Page, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page.open(write_report(request.getfixturevalue(name), tmp_path, ["html"])[0], *DESKTOP)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.querySelectorAll('figure svg text').length") > 40
    assert page.evaluate(WORDS_OUTSIDE) == []


def test_a_word_outside_its_figure_is_caught(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<figure><svg width=99 height=99><text x=90 y=9>outside</text></svg></figure>"
    )
    page.open(broken, *DESKTOP)
    assert page.evaluate(WORDS_OUTSIDE) == ["outside"]


CUT = """
    [...document.querySelectorAll('body *')].filter(one => one.checkVisibility()
        && ['auto', 'scroll', 'hidden'].includes(getComputedStyle(one).overflowX)
        && one.scrollWidth > one.clientWidth + 1 && !one.closest('select'))
"""
"""The elements whose content is wider than they are."""
HINTED = "box => [...(box.closest('figure') || box).querySelectorAll('.sideways')]"


@pytest.mark.parametrize("name", ["story", "several", "seeded"])
def test_what_is_cut_on_a_phone_has_a_hint(
    page: Page, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page.open(write_report(request.getfixturevalue(name), tmp_path, ["html"])[0], 390, 740)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(f"{CUT}.length") > 1
    without = f"{CUT}.filter(box => !({HINTED})(box).some(hint => hint.checkVisibility()))"
    assert page.evaluate(f"{without}.map(box => box.outerHTML.slice(0, 200))") == []
    hidden = (
        "[...document.querySelectorAll('figure, table, td')].filter(one => !one.checkVisibility())"
    )
    assert page.evaluate(f"{hidden}.length") == 0


def test_a_cut_without_a_hint_is_caught(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<div style='overflow-x:auto'><pre>" + "x" * 999 + "</pre></div>")
    page.open(broken, 390, 740)
    without = f"{CUT}.filter(box => !({HINTED})(box).some(hint => hint.checkVisibility()))"
    assert page.evaluate(f"{without}.length") == 1


def test_tables_scroll_inside_their_own_box(page: Page, report: Path) -> None:
    page.open(report, *PHONE)
    boxes = "[...document.querySelectorAll('.scroll')]"
    assert page.evaluate(f"{boxes}.some(box => box.scrollWidth > box.clientWidth)")


def test_colours_follow_the_system(page: Page, report: Path) -> None:
    colours = []
    for dark in (False, True):
        page.open(report, *DESKTOP, dark=dark)
        body = "getComputedStyle(document.body).backgroundColor"
        text = "getComputedStyle(document.querySelector('figure svg text')).fill"
        colours.append((page.evaluate(body), page.evaluate(text)))
    assert colours == [
        ("rgb(246, 247, 248)", "rgb(29, 35, 41)"),
        ("rgb(15, 18, 20)", "rgb(232, 236, 239)"),
    ]


def test_every_word_can_be_read(page: Page, report: Path) -> None:
    """Text on the page keeps a contrast of 4.5 with the page and cards behind it, in both."""
    names = ("ink", "muted", "stock", "good", "bad", "confident", "tie", "near", "invariant")
    for dark in (False, True):
        page.open(report, *DESKTOP, dark=dark)
        for name in names:
            for ground in ("page", "paper"):
                assert contrast(page, name, ground) >= 4.5, (name, ground, dark)


def contrast(page: Page, colour: str, ground: str) -> float:
    """WCAG contrast of two custom properties of the page."""
    style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
    bright, faint = sorted(
        (luminance(page.evaluate(style.format(name))) for name in (colour, ground)), reverse=True
    )
    return (bright + 0.05) / (faint + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


BROKEN = {
    "overflow": f"<p>{hostile.ATTACKS[13]}</p>",
    "script": "<script>window.pwned = 1</script>",
    "dialog": "<script>alert(1)</script>",
    "foreign": "<base href='http://evil.invalid/'>",
    "request": "<img src='http://127.0.0.1:9/x.png'>",
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_page_that_does_not_escape_is_caught(page: Page, problem: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(f"<!DOCTYPE html><title>broken</title>{BROKEN[problem]}", encoding="utf-8")
    page.open(broken, *PHONE)
    assert problem in problems(page)


def test_the_same_answers_unescaped_are_caught(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = "".join(f"<p>{answer}</p>" for answer in hostile.ANSWERS[:3])
    text += f"<p>{hostile.ANSWERS[13]}</p>"
    broken.write_text(f"<!DOCTYPE html>{text}", encoding="utf-8")
    page.open(broken, *DESKTOP)
    assert problems(page) >= {"overflow", "script", "foreign", "dialog", "request"}
