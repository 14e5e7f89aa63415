"""The page in a real browser: drop a file, segment, click, undo, save; nothing is loaded from elsewhere."""

import base64
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.datasets.dataset import Case
from autoseg.imaging.formats.readers import read_labels
from autoseg.imaging.formats.segments import colour_of
from autoseg.imaging.prompts import Click, InBox, Scribble
from browser import Browser, program
from files import affine_along, nifti
from served import SHAPE, engine_of, serving
from tiny import image

pytestmark = pytest.mark.slow
DROP = """(() => {
  const bytes = Uint8Array.from(atob(%r), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], %r));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
})()"""


@pytest.fixture(scope="module")
def engine():
    return engine_of()


@pytest.fixture(scope="module")
def browser():
    if program() is None:
        pytest.skip("no Chromium: install it to test the page of serve (Debian: apt-get install chromium)")
    with Browser() as found:
        yield found


class Visit:
    """The page of a server in a browser."""

    def __init__(self, browser: Browser, address: str, *, width: int = 1280, height: int = 800) -> None:
        self.browser, mobile = browser, width < 600
        browser.errors.clear()
        browser.requests.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        browser.send("Emulation.setDeviceMetricsOverride", **size)
        browser.send("Page.navigate", url=address)
        browser.wait_for("document.readyState === 'complete' && !!document.body.dataset.state")

    def open_listed(self, name: str) -> None:
        self.browser.evaluate(
            f"[...document.querySelectorAll('#folder .name')].find(b => b.textContent === {name!r}).click()"
        )
        self.browser.wait_for("document.body.dataset.state === 'shown'")

    def segment(self) -> None:
        self.press("segment")
        self.browser.wait_for("page.state.shown.segmented && page.state.tool === 'click'")
        self.settled()

    def press(self, button: str) -> None:
        self.browser.evaluate(f"document.getElementById({button!r}).click()")

    def labels(self) -> np.ndarray:
        """(Z, Y, X) as the viewer holds them."""
        values = self.browser.evaluate("Array.from(page.view.labels.img)")
        return np.array(values).reshape(self.browser.evaluate("page.state.shown.shape"))

    def settled(self) -> None:
        self.browser.wait_for("!Number(document.body.dataset.pending)")
        self.browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def point_of(self, voxel: tuple[int, int, int]) -> tuple[float, float]:
        """Where a voxel is in the window, after the crosshair was put on it."""
        self.browser.evaluate(f"page.view.lookAt({list(voxel)})")
        self.settled()
        x, y = self.browser.evaluate(f"page.view.positionOf({list(voxel)})")
        left, top = self.browser.evaluate(
            "(r => [r.x, r.y])(document.getElementById('canvas').getBoundingClientRect())"
        )
        return left + x, top + y

    def mouse(self, kind: str, x: float, y: float, modifiers: int = 0) -> None:
        pressed = {"button": "left", "buttons": 0 if kind == "mouseReleased" else 1, "clickCount": 1}
        self.browser.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, modifiers=modifiers, **pressed)

    def click(self, x: float, y: float) -> None:
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)
        self.settled()

    def colour_at(self, x: float, y: float, picture: Path) -> tuple[int, int, int]:
        """What a person sees there, without the crosshair and through nothing."""
        self.browser.evaluate("page.view.viewer.opts.crosshairWidth = 0; page.view.setOpacity(1)")
        self.settled()
        pixel = self.browser.picture(picture, whole=False, box=(round(x), round(y), 1, 1))
        red, green, blue = np.asarray(Image.open(pixel).convert("RGB"))[0, 0]
        return int(red), int(green), int(blue)

    def said(self) -> str:
        return self.browser.evaluate("document.getElementById('status').hidden ? '' : "
                                     "document.getElementById('status').textContent.trim()")  # fmt: skip


@pytest.mark.parametrize("axes", ["LPS", "RAI", "SLP"])
def test_drop_segment_click_undo_save(browser, engine, tmp_path, axes):
    """The voxel that is clicked on the screen is the one that changes, however the axes of the file are turned."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    path = nifti(tmp_path / "scan.nii.gz", image(3, SHAPE), affine_along(axes, (1.0, 1.0, 1.0), (3.0, -7.0, 11.0)))
    with serving(engine) as server:
        visit = Visit(browser, server.address)
        browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        assert browser.evaluate("location.href").endswith(f":{server.port}/"), "the token stays in the address"
        browser.evaluate(DROP % (base64.b64encode(path.read_bytes()).decode(), "scan.nii.gz"))
        browser.wait_for("document.body.dataset.state === 'shown'")
        visit.segment()
        loaded, _ = engine.load(Case("x", "x", (str(path),), None))
        before = engine.segment(loaded, lambda share: None)
        assert np.array_equal(visit.labels(), before)
        voxel = next(tuple(int(i) for i in v) for v in np.argwhere(before != 2) if (v > 3).all() and (v % 2 == 0).all())
        browser.evaluate("[...document.querySelectorAll('input[name=label]')].find(r => r.value === 'label2').click()")
        visit.click(*visit.point_of(voxel))
        refinement = engine.refine(loaded, before)
        refinement.add(Click(voxel, 2))
        after = visit.labels()
        assert (before[voxel] != 2, after[voxel]) == (True, 2)
        assert np.array_equal(after, refinement.labels)
        assert visit.colour_at(*visit.point_of(voxel), tmp_path / "seen.png") == colour_of(1), "drawn elsewhere"
        assert visit.said() == ""
        shown = browser.evaluate("document.getElementById('last').textContent")
        assert f"{(before != after).sum()} voxel" in shown
        size = browser.evaluate("document.querySelectorAll('.label .size')[2].textContent")
        assert float(size.split()[0]) == pytest.approx((after == 2).sum() / 1000, rel=0.01)
        keys = {"key": "z", "code": "KeyZ", "modifiers": 2, "windowsVirtualKeyCode": 90}
        browser.send("Input.dispatchKeyEvent", type="keyDown", **keys)
        visit.settled()
        browser.wait_for("page.state.shown.prompts === 0")
        visit.settled()
        assert np.array_equal(visit.labels(), before)
        visit.press("save-download")
        saved = downloads / "scan_seg.nii.gz"
        wait_for(saved)
        assert np.array_equal(read_labels(saved).array, before)
        assert browser.errors == []
        assert {one.partition(":")[0] for one in browser.requests if str(server.port) not in one} <= {"data", "blob"}


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < until, f"{path} is not there"
        time.sleep(0.05)


def test_scribble_keys_saving_beside_and_errors(browser, engine, tmp_path):
    folder = tmp_path / "images"
    path = nifti(folder / "a.nii.gz", image(4, SHAPE), affine_along("LPS", (1.0, 1.0, 1.0)))
    (folder / "b.nii.gz").write_bytes(b"nonsense")
    with serving(engine, folder) as server:
        visit = Visit(browser, server.address)
        visit.open_listed("a")
        visit.segment()
        before = visit.labels()
        browser.send("Input.dispatchKeyEvent", type="keyDown", key="1", code="Digit1", windowsVirtualKeyCode=49)
        assert browser.evaluate("page.state.label") == "label1"
        start = visit.point_of((6, 6, 8))
        visit.mouse("mousePressed", *start, modifiers=8)
        for step in range(1, 11):
            visit.mouse("mouseMoved", start[0] + 4 * step, start[1], modifiers=8)
        visit.mouse("mouseReleased", start[0] + 40, start[1], modifiers=8)
        visit.settled()
        (made,) = next(iter(next(iter(server.visitors._known.values())).cases.values())).refinement.prompts
        assert isinstance(made, Scribble)
        assert made.points[0] == (6, 6, 8)
        assert len(made.points) > 1
        after = visit.labels()
        loaded, _ = engine.load(Case("x", "x", (str(path),), None))
        refinement = engine.refine(loaded, before.astype(np.uint8))
        refinement.add(made)
        assert np.array_equal(after, refinement.labels)
        assert all(after[point] == 1 for point in made.points)
        visit.press("save-beside")
        browser.wait_for("document.getElementById('saved').textContent === 'Saved as a_seg.nii.gz'")
        assert np.array_equal(read_labels(folder / "a_seg.nii.gz").array, after)
        visit.press("save-beside")
        browser.wait_for("document.getElementById('overwrite').open")
        visit.press("overwrite-yes")
        browser.wait_for("!document.getElementById('overwrite').open")
        assert [error for error in browser.errors if "409" not in error] == []  # the browser notes what was refused
        browser.evaluate("[...document.querySelectorAll('#folder .name')].find(b => b.textContent === 'b').click()")
        browser.wait_for("!document.getElementById('status').hidden")
        assert "b.nii.gz" in visit.said()
        assert browser.evaluate("document.getElementById('status').getAttribute('role')") == "alert"


@pytest.mark.parametrize("width", [400, 820, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_everything_has_a_name(browser, engine, tmp_path, width, dark):
    nifti(tmp_path / ("a" * 60 + ".nii.gz"), image(4, SHAPE), affine_along("LPS", (1.0, 1.0, 1.0)))
    with serving(engine, tmp_path) as server:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.send("Emulation.setEmulatedMedia", features=[scheme])
        visit = Visit(browser, server.address, width=width)
        visit.open_listed("a" * 60)
        visit.settled()
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        light = browser.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        assert (sum(light) < 150) == dark
        nameless = browser.evaluate(
            "[...document.querySelectorAll('button, input, select, canvas:not([aria-hidden])')].filter(e => "
            "!(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length)))"
            ".map(e => e.outerHTML)"
        )
        assert nameless == []
        assert browser.errors == []


def test_boxes_taps_and_what_is_no_correction(browser, engine, tmp_path):
    nifti(tmp_path / "a.nii.gz", image(4, SHAPE), affine_along("LPS", (1.0, 1.0, 1.0)))
    with serving(engine, tmp_path) as server:
        visit = Visit(browser, server.address)
        visit.open_listed("a")
        visit.segment()
        left, top, width, height = browser.evaluate(
            "(r => [r.x, r.y, r.width, r.height])(document.getElementById('canvas').getBoundingClientRect())"
        )
        spots = [[x, y] for x in range(5, int(width), 20) for y in range(5, int(height), 20)]
        inside = browser.evaluate(f"{spots}.map(([x, y]) => !!page.view.voxelAt(x, y))")
        rendered = browser.evaluate(f"{spots}.map(([x, y]) => page.view.viewer.inRenderTile(x, y) >= 0)")
        assert any(rendered)
        assert not any(a and b for a, b in zip(inside, rendered, strict=True)), "the rendering has no voxels"
        x, y = next(spot for spot, there in zip(spots, rendered, strict=True) if there)
        visit.click(left + x, top + y)
        start = visit.point_of((6, 6, 8))
        visit.mouse("mousePressed", *start)
        visit.mouse("mouseMoved", start[0] + 30, start[1])
        visit.mouse("mouseReleased", start[0] + 30, start[1])  # the crosshair was dragged
        visit.settled()
        browser.evaluate("document.querySelector('input[name=tool][value=look]').click()")
        visit.click(*start)
        assert browser.evaluate("page.state.shown.prompts") == 0

        browser.evaluate("document.querySelector('input[name=tool][value=box]').click()")
        start = visit.point_of((6, 6, 8))
        corner = browser.evaluate(f"page.view.voxelAt({start[0] - left + 60}, {start[1] - top + 40})")
        visit.mouse("mousePressed", *start)
        for step in (1, 2):
            visit.mouse("mouseMoved", start[0] + 30 * step, start[1] + 20 * step)
        visit.mouse("mouseReleased", start[0] + 60, start[1] + 40)
        visit.settled()
        (case,) = next(iter(server.visitors._known.values())).cases.values()
        (box,) = case.refinement.prompts
        low, high = box.points
        assert isinstance(box, InBox)
        spread = [sorted((a, b)) for a, b in zip((6, 6, 8), corner, strict=True)]
        thin = next(axis for axis, (a, b) in enumerate(spread) if a == b)
        assert [[a, b] for n, (a, b) in enumerate(zip(low, high, strict=True)) if n != thin] == [
            edges for n, edges in enumerate(spread) if n != thin
        ]
        assert low[thin] < 6 + (thin == 2) * 2 < high[thin] + 1, "a box has a depth"
        visit.press("undo")
        browser.wait_for("page.state.shown.prompts === 0")

        Visit(browser, server.address, width=400, height=800)
        browser.wait_for("document.body.dataset.state === 'shown'")
        browser.evaluate("document.querySelector('input[name=tool][value=click]').click()")
        browser.evaluate("document.getElementById('canvas').scrollIntoView({ block: 'center' })")
        x, y = visit.point_of((6, 7, 9))
        browser.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        browser.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        browser.wait_for("page.state.shown.prompts === 1")
        assert case.refinement.prompts[0].points == ((6, 7, 9),)
        assert browser.errors == []


def test_where_the_network_looked_is_laid_over_the_image_until_labels_change(browser, engine, tmp_path):
    path = nifti(tmp_path / "scan.nii.gz", image(3, SHAPE), affine_along("RAI", (1.0, 1.0, 1.0)))
    with serving(engine) as server:
        visit = Visit(browser, server.address)
        browser.evaluate(DROP % (base64.b64encode(path.read_bytes()).decode(), "scan.nii.gz"))
        browser.wait_for("document.body.dataset.state === 'shown'")
        visit.segment()
        browser.evaluate("[...document.querySelectorAll('input[name=label]')].find(r => r.value === 'label1').click()")
        visit.press("why")
        browser.wait_for("page.view.looked && page.view.viewer.volumes.length === 3")
        looked = np.array(browser.evaluate("Array.from(page.view.looked.img)"))
        assert 0.99 < looked.max() <= 1
        assert looked.min() >= 0
        labels = visit.labels()
        visit.press("why")
        browser.wait_for("page.view.looked === null && page.view.viewer.volumes.length === 2")
        visit.press("why")
        browser.wait_for("page.view.looked && page.view.viewer.volumes.length === 3")
        voxel = next(tuple(int(i) for i in v) for v in np.argwhere(labels != 1) if (v > 3).all())
        visit.click(*visit.point_of(voxel))
        browser.wait_for("page.view.looked === null && page.view.viewer.volumes.length === 2")
        assert visit.labels()[voxel] == 1
        assert browser.evaluate("document.getElementById('why').checked") is False
        assert visit.said() == ""
        assert browser.errors == []
