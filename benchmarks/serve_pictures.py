"""Pictures of the page of `autoseg serve`, taken in a headless Chromium: pictures/serve-wide.png and serve-narrow.png.

    python benchmarks/serve_pictures.py -w WORKSPACE --folder IMAGES [--case ID] [--click Z,Y,X:LABEL ...]

Opens one image of the folder, segments it, gives the clicks, and takes the page at 1280 x 800 and at a width of 400.
"""

import argparse
import sys
from pathlib import Path

from autoseg.commands.serve import ServeOptions, open_server
from autoseg.workspace import Workspace

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
from browser import Browser  # noqa: E402


def take(browser: Browser, address: str, case: str, clicks: list[str], out: Path) -> None:
    """Use the page as a person would, and take the pictures."""
    browser.send("Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False)
    browser.send("Page.navigate", url=address)
    browser.wait_for("document.readyState === 'complete' && !!document.body.dataset.state")
    listed = "[...document.querySelectorAll('#folder .name')]"
    browser.evaluate(f"({listed}.find(b => b.textContent === {case!r}) || {listed}[0]).click()")
    browser.wait_for("document.body.dataset.state === 'shown'")
    browser.evaluate("document.getElementById('segment').click()")
    browser.wait_for("page.state.shown.segmented")
    voxel = [n // 2 for n in browser.evaluate("page.state.shown.shape")]
    for click in clicks:
        place, _, label = click.partition(":")
        voxel = [int(i) for i in place.split(",")]
        named = f"[...document.querySelectorAll('input[name=label]')].find(r => r.value === {label!r})"
        browser.evaluate(f"page.view.lookAt({voxel}); {named}.click()")
        x, y = browser.evaluate(f"page.view.positionOf({voxel})")
        left, top = browser.evaluate("(r => [r.x, r.y])(document.getElementById('canvas').getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            where = {"x": left + x, "y": top + y, "button": "left", "clickCount": 1}
            browser.send("Input.dispatchMouseEvent", type=kind, **where)
        browser.wait_for("!Number(document.body.dataset.pending)")
    browser.evaluate(f"page.view.lookAt({voxel})")
    browser.evaluate("new Promise(done => setTimeout(done, 500))")
    browser.picture(out / "serve-wide.png", whole=False)
    browser.send("Emulation.setDeviceMetricsOverride", width=400, height=860, deviceScaleFactor=1, mobile=True)
    browser.evaluate("new Promise(done => setTimeout(done, 1000))")
    browser.picture(out / "serve-narrow.png")
    assert browser.errors == [], browser.errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--case", default="")
    parser.add_argument("--click", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=HERE / "pictures")
    options = parser.parse_args()
    served = ServeOptions(folder=options.folder, port=0, browser=False)
    with open_server(Workspace(options.workspace), served) as server, Browser() as browser:
        take(browser, server.start().address, options.case, options.click, options.out)


if __name__ == "__main__":
    main()
