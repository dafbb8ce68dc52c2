"""What must hold of every output folder."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bids_scseg.cli.app import main

VOLATILE = ("started",)  # of a run, in JSON


@dataclass(frozen=True)
class Result:
    """What a run said and returned."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Result:
    """The program in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(item) for item in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def status(out: Path) -> dict[str, dict[str, str]]:
    """Rows of ``status.tsv`` by session."""
    with (out / "logs" / "status.tsv").open(encoding="utf-8", newline="") as stream:
        return {row["session"]: row for row in csv.DictReader(stream, delimiter="\t")}


def outputs(out: Path, label: str = "sub-02") -> dict[str, bytes]:
    """A subject's derivatives, byte for byte; JSON without dates."""
    found = {}
    for path in sorted((out / label.split("_")[0]).rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found[path.name] = _undated(data) if path.suffix == ".json" else data
    return found


def _undated(data: bytes) -> bytes:
    content = json.loads(data)
    for key in VOLATILE:
        content.get("run", {}).pop(key, None)
    return json.dumps(content, sort_keys=True).encode()


def page_text(page: Path) -> str:
    """What a reader sees of a page, on one line."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def foreign_addresses(page: Path) -> list[str]:
    """Addresses that a page would fetch from elsewhere, and relative ones that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"""(?:src|href|poster|data)\s*=\s*["']([^"']*)["']""", text)
    found += re.findall(r"url\(\s*['\"]?([^)'\"]*)", text)
    wrong = []
    for address in found:
        if address.startswith(("#", "data:")):
            continue
        file = html.unescape(address).partition("#")[0]
        if re.match(r"[a-z]+:|//", address) or not (page.parent / file).exists():
            wrong.append(address)
    return wrong


def unfinished(out: Path) -> list[str]:
    """Files that a writer left half-done, and images without sidecar or the other way round."""
    files = {path for path in out.rglob("*") if path.is_file() and "work" not in path.relative_to(out).parts}
    left = [path for path in files if path.name.endswith(".tmp")]
    for path in files:
        if path.name.endswith(".nii.gz") and path.with_name(path.name[:-7] + ".json") not in files:
            left.append(path)
    return sorted(str(path.relative_to(out)) for path in left)


def validator_issues(folder: Path) -> list[dict[str, object]]:
    """Errors and warnings of bids-validator-deno; skips where that is not installed."""
    tool = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
        "bids-validator-deno"
    )
    if tool is None:
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run([tool, str(folder), "--json"], capture_output=True, text=True, check=False)
    issues: list[dict[str, object]] = json.loads(done.stdout)["issues"]["issues"]
    return issues
