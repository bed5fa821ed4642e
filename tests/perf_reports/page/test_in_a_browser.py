"""The page in a headless Chromium, where one is installed: it sorts, asks and says nothing, and fits a phone."""

import json

import pytest

from tropigrad.perf_reports.page import page

from ..conftest import finished_run, fronts
from . import chromium

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    head, *rest = finished_run()
    return page.build([head, *fronts(), *rest], tmp_path_factory.mktemp("page"))


SIDEWAYS = """
const wide = document.documentElement.clientWidth;
const beyond = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > wide + 1);
return [document.documentElement.scrollWidth - wide, beyond.map((e) => e.tagName + " " + e.textContent.slice(0, 40))];
"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_lies_beyond_the_right_edge(browser, index, width, dark):
    browser.open(index, width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert browser.run(SIDEWAYS) == [0, []]


def test_the_console_is_silent_and_no_request_is_made(browser, index):
    for kind in ("browser", "performance"):
        browser.log(kind)
    browser.open(index, 1280)
    assert browser.log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [index.as_uri()]


def test_a_head_sorts_its_column_both_ways(browser, index):
    browser.open(index, 1280)
    click = """
    const table = [...document.querySelectorAll("table")].find((t) => t.textContent.includes("dense eager"));
    const head = [...table.tHead.rows[0].cells].find((cell) => cell.textContent.startsWith("median"));
    head.querySelector("button").click();
    const values = [...table.tBodies[0].rows].map((row) => Number(row.cells[head.cellIndex].dataset.v));
    return [head.getAttribute("aria-sort"), values];
    """
    order, values = browser.run(click)
    assert order == "descending"
    assert values == sorted(values, reverse=True)
    order, values = browser.run(click)
    assert order == "ascending"
    assert values == sorted(values)
    assert len(set(values)) > 2


def test_dark_follows_the_reader_and_paper_is_white(browser, index):
    background = "return getComputedStyle(document.body).backgroundColor"
    browser.open(index, 1280, dark=True)
    assert browser.run(background) == "rgb(21, 23, 26)"
    browser.open(index, 1280, dark=True, media="print")
    assert browser.run(background) == "rgb(255, 255, 254)"


def test_heads_stay_in_sight_and_rows_become_cards_on_a_phone(browser, index):
    style = "return [getComputedStyle(document.querySelector('thead th')).position, \
        getComputedStyle(document.querySelector('tbody tr')).display]"
    browser.open(index, 1280)
    assert browser.run(style) == ["sticky", "table-row"]
    browser.open(index, 390)
    assert browser.run(style) == ["static", "block"]
