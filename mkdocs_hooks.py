"""What MkDocs needs beyond ``mkdocs.yml``: files of the repository that pages link to, as pages of the site.

Links lead to model cards, configurations and scripts where they lie, so that they work in the repository as
well. Here each such file becomes a page under ``repository/``, and links are turned to it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent
DOCS = "docs/"
FOLDER = "repository/"
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
SOURCES = {".toml": "toml", ".py": "python", ".json": "json", ".sh": "bash", ".txt": "text"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside ``docs`` that a page links to, and for those that these link to."""
    from mkdocs.structure.files import File

    waiting = [DOCS + file.src_uri for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        here = waiting.pop()
        for target in linked(here):
            if target in seen:
                continue
            seen.add(target)
            waiting.append(target)
            if not target.startswith(DOCS):
                files.append(File.generated(config, site_path(target), content=as_page(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page of ``docs`` (the others have been turned when they were made)."""
    uri = page.file.src_uri
    return markdown if uri.startswith(FOLDER) else turned(markdown, DOCS + uri)


def linked(here: str) -> list[str]:
    """Files of the repository that a Markdown file of it links to, relative to the root."""
    if not here.endswith(".md"):
        return []
    text = FENCE.sub("", (ROOT / here).read_text(encoding="utf-8"))
    targets = (repository_path(match[2], here) for match in LINK.finditer(text))
    return [target for target in targets if target is not None]


def repository_path(link: str, here: str) -> str | None:
    """Where a relative link leads; None for addresses, anchors, folders and what is not there."""
    name = link.partition("#")[0]
    if not name or re.match(r"[a-z]+:", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), name))
    return target if not target.startswith("..") and (ROOT / target).is_file() else None


def site_path(target: str) -> str:
    """Path below the site's source folder of a file of the repository."""
    if target.startswith(DOCS):
        return target.removeprefix(DOCS)
    page = target if target.endswith(".md") else f"{target}.md"
    return FOLDER + page


def turned(markdown: str, here: str) -> str:
    """Markdown of a file of the repository with links as the site needs them."""
    base = posixpath.dirname(site_path(here)) or "."

    def turn(match: re.Match[str]) -> str:
        target = repository_path(match[2], here)
        if target is None:
            return match[0]
        anchor = match[2].partition("#")[2]
        path = posixpath.relpath(site_path(target), base)
        return f"{match[1]}{path}{'#' + anchor if anchor else ''}{match[3]}"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(turn, part) for part in parts)


def as_page(target: str) -> str:
    """A file of the repository as a page: Markdown with its links turned, anything else as code."""
    text = (ROOT / target).read_text(encoding="utf-8")
    if target.endswith(".md"):
        return turned(text, target)
    return f"# {target}\n\n```{SOURCES.get(Path(target).suffix, 'text')}\n{text}\n```\n"
