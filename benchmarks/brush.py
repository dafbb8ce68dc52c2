"""How fast the cohort's page answers to a brush: brush.py [--participants 150] [--sessions 2] [--steps 25]

Makes the outputs of an invented cohort, writes its page, opens it in a headless Chromium (1280 x 900) and
drags over the first distribution step by step. Prints the milliseconds from the pointer's move to the frame
that answers it, and the processor's time of the page's main thread (which does not depend on what else the
machine does): until that frame, and with the views beyond the window, which follow when nothing else is to
do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.append(
    str(Path(__file__).parents[1] / "tests")
)  # the invented cohort and the browser are the tests'
from browser import Page, browser
from cohort_tree import make_tree

from bids_scseg.workflows.group import write_group

WATCH = """window.answers = [];
window.tell = () => null;
document.querySelector('.plot canvas').addEventListener('pointermove', () => {
  const start = performance.now();
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => { window.answers.push(performance.now() - start); window.tell(); };
    channel.port2.postMessage(0);
  });
}, { capture: true });"""
PARTS = ("ScriptDuration", "RecalcStyleDuration", "LayoutDuration", "TaskDuration")


def spent(page: Page) -> np.ndarray:
    """Processor's milliseconds of the main thread so far: script, style, layout, all."""
    found = {item["name"]: item["value"] for item in page.command("Performance.getMetrics")["metrics"]}
    return np.array([1000 * found[name] for name in PARTS])


def move(page: Page, x: float, y: float) -> None:
    """Move the pressed mouse, and wait for the frame that answers."""
    known = page.evaluate("window.answers.length")
    page.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=1)
    page.evaluate(f"window.answers.length > {known} || new Promise((done) => {{ window.tell = done; }})")


def drag(page: Page, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Milliseconds of each step to its frame; processor's time to the frame; with all that follows."""
    box = page.box(".plot canvas")
    page.evaluate(WATCH)
    y = box["y"] + box["height"] / 2
    page.command("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + 20, y=y)
    page.command(
        "Input.dispatchMouseEvent", type="mousePressed", x=box["x"] + 20, y=y, button="left", buttons=1
    )
    frames, totals = [], []
    page.evaluate("window.answers.length = 0")
    for step in range(1, steps + 1):
        before = spent(page)
        move(page, box["x"] + 20 + (box["width"] - 40) * step / steps, y)
        frames.append(spent(page) - before)
        time.sleep(0.8)  # views beyond the window follow
        totals.append(spent(page) - before)
    return np.array(page.evaluate("window.answers")), np.array(frames), np.array(totals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--participants", type=int, default=150)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument(
        "--page", type=Path, help="a page that is there already, instead of an invented cohort"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = arguments.page
        if target is None:
            bids, out = make_tree(
                Path(folder), participants=arguments.participants, sessions=arguments.sessions
            )
            write_group(out, dataset=bids, facts={"dataset": "invented"})
            target = out / "group.html"
        with browser(Path(folder)) as page:
            page.command("Performance.enable", timeDomain="threadTicks")
            page.open(target)
            time.sleep(3)
            answers, frames, totals = drag(page, arguments.steps)
    print(f"answer, ms: median {np.median(answers):.0f}, longest {answers.max():.0f}, "
          f"over 100: {int((answers > 100).sum())} of {answers.size}")  # fmt: skip
    for name, found in (("to the frame", frames), ("with all that follows", totals)):
        words = ", ".join(f"{part.removesuffix('Duration')} {value:.1f}" for part, value in
                          zip(PARTS, np.median(found, axis=0), strict=True))  # fmt: skip
        print(f"processor {name}, median ms: {words}; longest in all {found[:, -1].max():.0f}")


if __name__ == "__main__":
    main()
