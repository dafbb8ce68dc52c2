"""The documentation as a site: every page is in it, links and anchors lead somewhere, symptoms are real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LARGEST_PICTURE = 300_000  # bytes
STATES = ("done", "failed", "refused", "busy", "sct_deepseg")  # quoted beside messages
#: Text of the code: what messages are made of. Places that differ stand in braces.
SOURCE = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("bids_scseg", "workflows")
    for path in sorted((ROOT / folder).rglob("*.py"))
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors: a page out of the navigation, a dead link, a dead anchor."""
    pytest.importorskip("material", reason="mkdocs-material is not installed (pip install '.[docs]')")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    words = [line for line in done.stderr.splitlines() if line.startswith(("WARNING", "ERROR"))]
    assert done.returncode == 0, "\n".join(words) or done.stderr[-2000:]
    return out


def test_every_page_is_built(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert {path for path in pages if not (site / path).is_file()} == set()


def test_what_pages_link_to_in_the_repository_is_in_the_site(site: Path) -> None:
    source = (ROOT / "bids_scseg/models/cord-lesion/card.md").read_text(encoding="utf-8")
    title = source.splitlines()[0].removeprefix("# ")
    card = (site / "repository/bids_scseg/models/cord-lesion/card.html").read_text(encoding="utf-8")
    assert title in " ".join(re.sub(r"<[^>]+>", " ", card).split())
    assert 'href="repository/bids_scseg/models/cord-lesion/card.html"' in (site / "index.html").read_text()


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    found = set()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        found |= set(re.findall(r'(?:src|data-src)="((?:https?:)?//[^"]+)"', text))
        found |= set(
            re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect|icon)"[^>]+href="(https?://[^"]+)"', text)
        )
    assert found == set()


def test_pictures_are_small_and_used() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in [*DOCS.rglob("*.md"), ROOT / "README.md"])
    for picture in sorted((DOCS / "images").iterdir()):
        assert picture.stat().st_size < LARGEST_PICTURE, picture.name
        assert f"images/{picture.name}" in text, f"{picture.name} is shown nowhere"


def symptoms() -> list[str]:
    """Messages in the first column of the tables of the troubleshooting page."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return [quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell) if quote not in STATES]


@pytest.mark.parametrize("symptom", symptoms())
def test_a_symptom_is_a_message_of_the_code(symptom: str) -> None:
    """Its parts between what differs stand in the code, letter by letter (line breaks of literals aside)."""
    code = re.sub(r'"\s*\n\s*f?"', "", SOURCE)
    parts = [part.strip() for part in re.split(r"…", symptom) if len(part.strip()) > 3]
    assert parts
    assert [part for part in parts if part not in code] == []
