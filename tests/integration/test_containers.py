"""The image, built from this tree and run as a cluster would: read-only, no network, an unknown user id."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bids_scseg import __version__
from bids_scseg.cli.version import code_checksum

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/bids_scseg:test"
USER = 12345  # has no name in the image
SMALL_GB = 3.0  # of the image without SCT and with a CPU build of torch; 2.1 when this was written
LOCKED_DOWN = (
    "podman", "run", "--rm", "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc",
    "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024",
    "--network=none", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", f"--user={USER}:{USER}",
)  # fmt: skip


def run(*command: str, minutes: float = 5) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * minutes)


def container(*arguments: str, options: tuple[str, ...] = (), minutes: float = 5) -> str:
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
    """Dataset and results of the image's self-test, which ran as USER in a folder of its own."""
    root = tmp_path_factory.mktemp("container")
    demo = root / "demo"
    demo.mkdir()
    os.chown(demo, USER, USER)
    options = ("--entrypoint=bids_scseg_selftest", f"--volume={demo}:/demo")
    said = container("/demo", options=options, minutes=30)
    assert said.rstrip().endswith("selftest passed: /demo/out")
    yield demo / "bids", demo / "out"
    shutil.rmtree(root)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def inspected() -> dict[str, Any]:
    done = run("podman", "image", "inspect", IMAGE)
    facts: dict[str, Any] = json.loads(done.stdout)[0]
    return facts


def test_help_and_version() -> None:
    assert "participant" in container("--help")
    version = container("--version")
    assert version.startswith(f"bids_scseg {__version__} ")
    assert "sct_deepseg: not installed" in version, "this image was built without SCT"
    assert re.search(r"^model cord-lesion: sha256 [0-9a-f]{64}$", version, flags=re.MULTILINE)
    # The image holds the very code of this tree.
    assert f"code: sha256 {code_checksum()}\n" in version


def test_labels_size_and_settings() -> None:
    facts = inspected()
    labels = facts["Labels"]
    head = run("git", "-C", str(ROOT), "rev-parse", "HEAD").stdout.strip()
    assert labels["org.opencontainers.image.revision"] == head
    assert labels["org.opencontainers.image.version"] == __version__
    size_gb = facts["Size"] / 1e9
    print(f"image without SCT: {size_gb:.2f} GB")
    assert size_gb < SMALL_GB
    config = facts["Config"]
    assert config["User"] == "1000:1000"
    assert {"OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1"} <= set(config["Env"])


def test_nothing_can_be_written_but_tmp() -> None:
    script = "touch /opt/x 2>/dev/null || touch /home/x 2>/dev/null || { touch /tmp/x && id -u; }"
    assert container("-c", script, options=("--entrypoint=sh",)).split() == [str(USER)]


def test_usage_error_has_its_exit_code() -> None:
    assert run(*LOCKED_DOWN, IMAGE, "/data", "/out", "cohort").returncode == 17


def test_the_self_test_leaves_a_whole_dataset(folders: tuple[Path, Path]) -> None:
    _, out = folders
    names = [path.name for path in out.rglob("*") if path.is_file()]
    assert {"dataset_description.json", "status.tsv", "group.html"} <= set(names)
    assert any(name.endswith("_mask.nii.gz") for name in names)
    assert any(re.fullmatch(r"sub-\w+\.html|sub-\w+_ses-\w+\.html", name) for name in names)
    assert {path.stat().st_uid for path in out.rglob("*")} == {USER}


def test_inputs_may_be_read_only_and_stay_as_they_were(folders: tuple[Path, Path]) -> None:
    bids, out = folders
    before = contents(bids)
    mounts = (f"--volume={bids}:/demo/bids:ro", f"--volume={out}:/demo/out")
    command = (
        "/demo/bids",
        "/demo/out",
        "participant",
        "--cord",
        "builtin",
        "--levels",
        "none",
        "--nprocs",
        "1",
    )
    container(*command, options=mounts, minutes=10)
    assert contents(bids) == before


def test_what_is_missing_is_one_line_at_the_start(folders: tuple[Path, Path], tmp_path: Path) -> None:
    bids, _ = folders
    os.chown(tmp_path, USER, USER)
    data = f"--volume={bids}:/data:ro"
    closed = run(*LOCKED_DOWN, data, f"--volume={tmp_path}:/out:ro", IMAGE, "/data", "/out", "participant")
    assert closed.returncode == 73
    assert closed.stderr.count("\n") == 1 and "cannot be written (Read-only file system)" in closed.stderr
    command = ("/data", "/out", "participant", "--device", "cuda")
    no_gpu = run(*LOCKED_DOWN, data, f"--volume={tmp_path}:/out", IMAGE, *command, minutes=5)
    assert no_gpu.returncode == 127
    assert no_gpu.stderr.count("\n") == 1 and "--gpus all" in no_gpu.stderr
    command = ("/data", "/out", "participant", "--cord", "sct")
    no_sct = run(*LOCKED_DOWN, data, f"--volume={tmp_path}:/out", IMAGE, *command)
    assert no_sct.returncode == 127
    assert no_sct.stderr.count("\n") == 1 and "sct_deepseg is not on the PATH" in no_sct.stderr
