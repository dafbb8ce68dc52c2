"""Templates to files: always escaped, without anything from outside, written at once or not at all."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bids_scseg.files import write_bytes, write_text

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["environment", "relative", "render_page", "write_bytes", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"
RELATIVE = re.compile(r"^(?![a-zA-Z][a-zA-Z0-9+.-]*:|//|\\\\)")  # no scheme, no host


def environment() -> Environment:
    """Templates with escaping always on and no silent gaps."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["relative"] = relative
    return made


def relative(address: str) -> str:
    """An address if it stays within the output folder's world (no scheme, no host), else nothing."""
    return address if RELATIVE.match(address) else ""


def render_page(template: str, facts: Mapping[str, object]) -> str:
    """Render a page; its policy lets only its own script and style run, and nothing be fetched."""
    templates = environment()
    return templates.get_template(template).render(
        **facts,
        script_hash=_hash(templates.get_template("page.js").render()),
        style_hash=_hash(templates.get_template("style.css").render()),
    )


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")


def write_page(path: Path, page: str) -> None:
    """Write a page, at once or not at all.

    Raises
    ------
    OutputError
        If the folder cannot be made or written.
    """
    write_text(path, page)
