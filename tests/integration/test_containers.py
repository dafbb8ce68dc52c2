"""The image, built from this tree and run as a cluster would: read-only, no network, an unknown user id."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bids_scseg import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/bids_scseg:test"
USER = 12345  # has no name in the image
LOCKED_DOWN = (
    "podman", "run", "--rm", "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc",
    "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024",
    "--network=none", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", f"--user={USER}:{USER}",
)  # fmt: skip


def run(*command: str, minutes: float = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * minutes)


def container(*arguments: str, options: tuple[str, ...] = (), minutes: float = 1) -> str:
    done = run(*LOCKED_DOWN, *options, IMAGE, *arguments, minutes=minutes)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def image() -> str:
    """The image, built from the working tree (layers that did not change are taken from the last build)."""
    missing = [tool for tool in ("buildah", "podman", "runc", "debootstrap") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("building with chroot isolation and debootstrap needs root")
    done = run(str(ROOT / "tests" / "integration" / "container_build.sh"), IMAGE, minutes=30)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return IMAGE


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A demo dataset made inside the container, and an empty folder for results, both open to USER."""
    root = tmp_path_factory.mktemp("container")
    out = root / "out"
    for folder in (root / "demo", out):
        folder.mkdir()
        os.chown(folder, USER, USER)
    options = ("--entrypoint=scseg", f"--volume={root / 'demo'}:/demo")
    container("demo", "/demo/bids", "--subjects=1", "--seed=0", options=options, minutes=10)
    yield root / "demo" / "bids", out
    shutil.rmtree(root)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_help_and_version() -> None:
    assert "participant" in container("--help")
    version = container("--version")
    assert version.startswith(f"bids_scseg {__version__} ")
    assert "not installed (calls" in version, "this image has no SCT"
    assert re.search(r"^model cord-lesion: sha256 [0-9a-f]{64}$", version, flags=re.MULTILINE)


def test_nothing_can_be_written_but_tmp() -> None:
    script = "touch /opt/x 2>/dev/null || touch /home/x 2>/dev/null || { touch /tmp/x && id -u; }"
    assert container("-c", script, options=("--entrypoint=sh",)).split() == [str(USER)]


def test_usage_error_has_its_exit_code() -> None:
    assert run(*LOCKED_DOWN, IMAGE, "/data", "/out", "cohort").returncode == 17


def test_demo_runs_inside(folders: tuple[Path, Path]) -> None:
    bids, out = folders
    before = contents(bids)
    mounts = (f"--volume={bids}:/data:ro", f"--volume={out}:/out")
    container("/data", "/out", "participant", options=mounts, minutes=20)
    assert contents(bids) == before
    names = [path.name for path in out.rglob("*") if path.is_file()]
    assert "dataset_description.json" in names
    assert "status.tsv" in names
    assert any(name.endswith("_mask.nii.gz") for name in names)
    assert any(re.fullmatch(r"sub-\w+\.html|sub-\w+_ses-\w+\.html", name) for name in names)
    assert {path.stat().st_uid for path in out.rglob("*")} == {USER}

    group = (f"--volume={out}:/out",)
    container("-", "/out", "group", options=group, minutes=5)
    assert (out / "group.html").is_file()
