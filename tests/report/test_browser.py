"""The page in a real browser: no error, nothing loaded, every section there, and the viewer draws."""

import numpy as np
import pytest
from PIL import Image

from autoseg.report.gathered import gather
from autoseg.report.html import SECTIONS, render
from browser import Browser, program
from reported import SCRIPT, reported_workspace

pytestmark = pytest.mark.thorough
WIDTHS = (390, 820, 1440)


@pytest.fixture(scope="module")
def page(tmp_path_factory, in_this_process):
    if program() is None:
        pytest.skip("no Chromium: install it to test the report's page (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(render(gather(reported_workspace(folder)[1], live=False)).text)
    return path


@pytest.fixture(scope="module")
def browser(page):
    with Browser() as found:
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_sections_are_seen_and_nothing_is_wider_than_the_screen(browser, page, width, dark):
    browser.open(page, width=width, dark=dark, mobile=width < 600)
    shown = browser.evaluate("[...document.querySelectorAll('main > section')].map(s => [s.id, s.offsetHeight > 100])")
    assert shown == [[name, True] for name, _ in SECTIONS]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    light = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (sum(light) < 150) == dark


def test_no_error_and_nothing_loaded(browser, page):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page)
    browser.evaluate("new Promise(done => setTimeout(done, 200))")
    assert browser.errors == []
    assert {one.split(":")[0] for one in browser.requests} <= {"file", "data", "blob"}
    assert browser.evaluate("window.alert.toString()").startswith("function alert() { [native")


def test_the_viewer_draws(browser, page, tmp_path):
    """Also of the case whose name would be a script; and another view of it looks different."""
    browser.open(page)
    browser.errors.clear()
    browser.evaluate(f"[...document.querySelectorAll('.open')].find(b => b.dataset.case === {SCRIPT!r}).click()")
    browser.wait_for("document.getElementById('viewer').dataset.state")
    assert browser.evaluate("document.getElementById('viewer').dataset.state") == "drawn"
    first = seen(browser, tmp_path / "planes.png")
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50, "the canvas is blank"
    assert (np.ptp(first, axis=2) > 60).mean() > 0.002, "no overlay in colour"
    browser.evaluate(
        "v = document.getElementById('viewer-view'); v.value = 'axial'; v.dispatchEvent(new Event('input'))"
    )
    second = seen(browser, tmp_path / "axial.png")
    assert (first != second).any(axis=2).mean() > 0.05
    assert browser.errors == []


def test_without_webgl_the_pictures_remain(page, tmp_path):
    with Browser("--disable-gpu", "--disable-3d-apis") as found:
        found.open(page)
        found.evaluate("document.querySelector('.open').click()")
        found.wait_for("document.getElementById('viewer').dataset.state")
        told = found.evaluate("document.getElementById('viewer-note').textContent")
        assert "WebGL 2 is missing. It needs WebGL 2" in told
        assert found.evaluate("document.querySelectorAll('svg.still').length") > 0
        assert found.errors == []


def seen(browser: Browser, path) -> np.ndarray:
    """The viewer's canvas as a person sees it, (rows, columns, 3)."""
    browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = browser.evaluate(
        "(r => [r.x, r.y, r.width, r.height])(document.getElementById('viewer-canvas').getBoundingClientRect())"
    )
    return np.asarray(Image.open(browser.picture(path, whole=False, box=tuple(box))).convert("RGB")).astype(int)
