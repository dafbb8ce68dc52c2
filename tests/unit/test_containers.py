"""Scripts that build images, against a stand-in of the toolbox's repository."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from toolbox import RECORDING, make_repository

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "containers" / "install_sct.sh"


@pytest.fixture
def toolbox(tmp_path: Path) -> Path:
    """A repository with tag 7.3, whose installer and program write down how they were called."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    return make_repository(tmp_path / "source", RECORDING)


def install(release: str, source: Path, tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text('#!/bin/sh\necho "apt-get $*" >> "$CALLS"\n')
    (tools / "apt-get").chmod(0o755)
    # What the script clears must not be this machine's.
    (tools / "rm").write_text('#!/bin/sh\ncase "$*" in */apt/*) exit 0;; esac\nexec /bin/rm "$@"\n')
    (tools / "rm").chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    done = subprocess.run(
        ["/bin/sh", str(SCRIPT), release, str(source), str(tmp_path / "sct")], capture_output=True,
        text=True, check=False, timeout=60,
        env={"PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(calls), "HOME": str(tmp_path)},
    )  # fmt: skip
    return done, calls.read_text().splitlines()


def test_the_toolbox_comes_with_the_models_that_are_called(toolbox: Path, tmp_path: Path) -> None:
    done, calls = install("7.3", toolbox, tmp_path)
    assert done.returncode == 0, done.stderr
    assert calls[0] == "apt-get update"
    assert calls[2:] == [
        "installer -iyc", "sct_deepseg spinalcord -install", "sct_deepseg lesion_ms -install",
        "sct_deepseg spine -install",
    ]  # fmt: skip
    folder = tmp_path / "sct"
    assert not (folder / ".git").exists()
    assert (folder / "bin" / "sct_deepseg").stat().st_mode & 0o005 == 0o005, "others may run it"


def test_another_release_than_asked_for_is_an_error(toolbox: Path, tmp_path: Path) -> None:
    done, calls = install("7.2", toolbox, tmp_path)
    assert done.returncode == 1
    assert "release 7.3 was installed, expected 7.2" in done.stderr
    assert not any(call.startswith("sct_deepseg") for call in calls)


def test_an_unknown_release_ends_the_build(toolbox: Path, tmp_path: Path) -> None:
    done, calls = install("9.9", toolbox, tmp_path)
    assert done.returncode != 0
    assert not any(call.startswith("installer") for call in calls)


def test_none_leaves_an_empty_folder(tmp_path: Path) -> None:
    done, calls = install("none", Path("/nowhere"), tmp_path)
    assert (done.returncode, calls) == (0, [])
    assert list((tmp_path / "sct").iterdir()) == []


@pytest.mark.parametrize("name", ["install_sct.sh", "selftest.sh"])
def test_scripts_are_plain_shell_that_stops_at_errors(name: str) -> None:
    text = (ROOT / "containers" / name).read_text()
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in text
    subprocess.run(["/bin/sh", "-n"], input=text, text=True, check=True, timeout=10)
