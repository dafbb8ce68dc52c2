"""Templates to files: always escaped, without anything from outside, written at once or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bids_scseg.files import write_bytes, write_text

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["environment", "relative", "render_page", "write_bytes", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"
ASSETS = Path(__file__).parent / "assets"
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


def render_page(
    template: str,
    facts: Mapping[str, object],
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    trusted: Sequence[str] = (),
    data: Mapping[str, object] | None = None,
) -> str:
    """Render a page; its policy lets only its own script and style run, and nothing be fetched.

    Parameters
    ----------
    template, facts
        Template and its variables, which are escaped.
    styles, scripts
        Sources from this package that the page needs beside those of every page.
    trusted
        Sources that the page's scripts may start themselves (from text that the page holds).
    data
        Element id → plain data, for the page's scripts; embedded as JSON that no text in it can leave.
    """
    from markupsafe import Markup

    templates = environment()
    sheets = [templates.get_template("style.css").render(), *styles]
    codes = [*scripts, templates.get_template("page.js").render()]
    blocks = {name: Markup(script_json(value)) for name, value in (data or {}).items()}  # noqa: S704
    return templates.get_template(template).render(
        **facts,
        style_sources=[Markup(text) for text in sheets],  # noqa: S704 - the package's own text
        script_sources=[Markup(text) for text in codes],  # noqa: S704
        style_hashes=[_hash(text) for text in sheets],
        script_hashes=[_hash(text) for text in (*codes, *trusted)],
        data_blocks=blocks,
    )


def script_json(value: object) -> str:
    """Plain data as JSON that can stand inside a script element: no text in it ends the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def asset(name: str) -> str:
    """Text of a file of ``report/assets``."""
    return (ASSETS / name).read_text(encoding="utf-8")


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
