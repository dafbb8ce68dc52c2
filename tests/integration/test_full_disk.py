"""A disk that is really full: a small file system, filled while a run is at work, then enlarged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from integration.checks import outputs, status, unfinished

from bids_scseg.cli import participant

pytestmark = pytest.mark.slow

SIZE, LARGER = "80m", "400m"  # the check before the start asks for some 20 MB


@dataclass(frozen=True)
class Disk:
    """A file system in memory."""

    folder: Path

    def fill(self, *, leave: int) -> None:
        """Another program takes all room but some bytes."""
        free = shutil.disk_usage(self.folder).free
        with (self.folder / "ballast").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, free - leave)

    def enlarge(self) -> None:
        """The administrator gives more room."""
        subprocess.run(["mount", "-o", f"remount,size={LARGER}", self.folder], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    """A disk of 80 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root and mount")
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not let root mount a disk")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.fixture
def full_after_one(disk, monkeypatch):
    """Arrange that the disk is full but for some bytes as soon as the first session has ended."""

    def arrange(leave: int) -> None:
        write = participant.write_outcome

        def write_and_fill(*arguments, **named):
            write(*arguments, **named)
            if not (disk.folder / "ballast").exists():
                disk.fill(leave=leave)

        monkeypatch.setattr(participant, "write_outcome", write_and_fill)

    return arrange


def whole(out: Path) -> dict[str, bytes]:
    """Every subject's outputs."""
    return {**outputs(out, "sub-01"), **outputs(out, "sub-02")}


#: Step that fails → bytes left when the first of three sessions is done. The second writes 12.3 MB in prepare
#: and 1.5 MB in segment (that is the inference process) and in measure, and 2 MB of page and figures.
LEFT = {"log": 0, "prepare": 1_500_000, "segment": 13_000_000, "report": 15_700_000}


@pytest.mark.parametrize("step", LEFT)
def test_a_disk_that_fills_up_in_the_middle(run, good, disk, full_after_one, step):
    out = disk.folder / "out"
    arguments = (good.bids, out, "-d", good.labels, "--output-spaces", "all")
    full_after_one(LEFT[step])
    result = run(*arguments)
    assert result.code == 1, result.err
    assert "Traceback" not in result.err
    (told,) = [line for line in result.err.splitlines() if re.match(r"\[\d/3\] .*: failed", line)]
    assert "No space left on device" in told or "the disk is full" in told, result.err
    assert f"file: {out}/" in told and "run the same command again" in told, result.err
    assert f"failed in {step}:" in told, told
    assert "1 failed" in result.err and "not started" in result.err, result.err
    if step != "log":
        assert re.search(r"; \d+\.\d MB are free; expected about \d+ MB for a session like this", told), told
    assert unfinished(out) == []
    done = {name: data for name, data in whole(out).items() if name in whole(good.out)}
    assert all(data == whole(good.out)[name] for name, data in done.items())
    disk.enlarge()
    again = run(*arguments)
    assert again.code == 0, again.err
    assert whole(out) == whole(good.out)
    assert {row["state"] for row in status(out).values()} == {"done"}
    assert json.loads((out / "logs" / "verification.json").read_text())["verdict"] == "passed"
