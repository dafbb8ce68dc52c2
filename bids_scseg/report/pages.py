"""Templates to files: always escaped, without anything from outside, written at once or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bids_scseg.errors import OutputError

if TYPE_CHECKING:
    from jinja2 import Environment

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


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there in full or not at all.

    Raises
    ------
    OutputError
        If the folder cannot be made or written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write: {error.strerror}",
            file=path,
            expected="a writable folder with free space",
            remedy="check permissions and free space, then run again",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_page(path: Path, page: str) -> None:
    """Write a page (see :func:`write_bytes`)."""
    write_bytes(path, page.encode("utf-8"))
