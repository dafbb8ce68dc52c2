"""The image, built from this tree and run as a cluster would: read-only, no network, an unknown user id."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.containers import ROOT, USER, build_image, container, folder_of_user, run, said

from bids_scseg import __version__
from bids_scseg.cli.version import code_checksum

pytestmark = pytest.mark.slow

IMAGE = "localhost/bids_scseg:test"
SMALL_GB = 3.0  # of the image without SCT and with a CPU build of torch; 2.1 when this was written


@pytest.fixture(scope="module", autouse=True)
def commit() -> str:
    """The commit at which the image was built from the working tree."""
    head = run("git", "-C", str(ROOT), "rev-parse", "HEAD").stdout.strip()
    build_image(IMAGE)
    return head


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Dataset and results of the image's self-test, which ran as USER in a folder of its own."""
    root = tmp_path_factory.mktemp("container")
    demo = folder_of_user(root / "demo")
    options = ("--entrypoint=bids_scseg_selftest", f"--volume={demo}:/demo")
    printed = said(container(IMAGE, "/demo", options=options, minutes=60))
    passed = re.search(r"^selftest passed in (\d+) s: /demo/out$", printed, flags=re.MULTILINE)
    assert passed, printed
    print(f"self-test, read-only and without network: {passed[1]} s")
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
    assert "participant" in said(container(IMAGE, "--help"))
    version = said(container(IMAGE, "--version"))
    assert version.startswith(f"bids_scseg {__version__} ")
    assert "sct_deepseg: not installed" in version, "this image was built without SCT"
    assert re.search(r"^model cord-lesion: sha256 [0-9a-f]{64}$", version, flags=re.MULTILINE)
    assert re.search(r"^torch \S+ \(sha256 [0-9a-f]{16}\)$", version, flags=re.MULTILINE)
    # The image holds the very code of this tree.
    assert f"code: sha256 {code_checksum()}\n" in version


def test_labels_size_and_settings(commit: str) -> None:
    facts = inspected()
    labels = facts["Labels"]
    assert labels["org.opencontainers.image.revision"] == commit
    assert labels["org.opencontainers.image.version"] == __version__
    size_gb = facts["Size"] / 1e9
    print(f"image without SCT: {size_gb:.2f} GB")
    assert size_gb < SMALL_GB
    config = facts["Config"]
    assert config["User"] == "1000:1000"
    assert {"OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1"} <= set(config["Env"])


def test_nothing_can_be_written_but_tmp() -> None:
    script = "touch /opt/x 2>/dev/null || touch /home/x 2>/dev/null || { touch /tmp/x && id -u; }"
    assert said(container(IMAGE, "-c", script, options=("--entrypoint=sh",))).split() == [str(USER)]


def test_every_file_of_the_program_can_be_read_by_whoever_runs_it() -> None:
    script = "find /opt ! -readable -print"
    assert said(container(IMAGE, "-c", script, options=("--entrypoint=sh",))) == ""


def test_usage_error_has_its_exit_code() -> None:
    assert container(IMAGE, "/data", "/out", "cohort").returncode == 17


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
    how = ("--sequences", "T2Sag", "T2StarAx", "--cord", "builtin", "--levels", "none", "--nprocs", "1")
    done = container(IMAGE, "/demo/bids", "/demo/out", "participant", *how, options=mounts, minutes=20)
    said(done)
    assert contents(bids) == before
    # Nobody asked for a GPU by name: the run goes on, and says so before anything else of the session.
    first = next(line for line in done.stderr.splitlines() if "CUDA" in line or "sub-01" in line)
    assert "no CUDA device is visible: inference runs on the CPU" in first
    assert "--gpus all" in first


@pytest.mark.parametrize(
    ("writable", "wish", "code", "words"),
    [
        (False, (), 73, "cannot be written (Read-only file system)"),
        (True, ("--device", "cuda"), 127, "--gpus all"),
        (True, ("--cord", "sct"), 127, "sct_deepseg is not on the PATH"),
        (True, ("--levels", "sct"), 127, "sct_deepseg is not on the PATH"),
        (True, ("--model", "sct:lesion_ms"), 127, "sct_deepseg is not on the PATH"),
    ],
)
def test_what_is_missing_is_one_line_at_the_start(
    folders: tuple[Path, Path], tmp_path: Path, writable: bool, wish: tuple[str, ...], code: int, words: str
) -> None:
    out = folder_of_user(tmp_path / "out")
    mounts = (f"--volume={folders[0]}:/data:ro", f"--volume={out}:/out" + ("" if writable else ":ro"))
    done = container(IMAGE, "/data", "/out", "participant", *wish, options=mounts)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert list(out.rglob("*.nii.gz")) == []


OLD_GPU = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_name = lambda index: "Old"
torch.cuda.get_device_capability = lambda index: (3, 0)
"""


def test_a_gpu_that_this_torch_was_not_built_for(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A driver that shows a GPU is played; that torch cannot compute with it is true of this image."""
    out = folder_of_user(tmp_path / "out")
    played = tmp_path / "played"
    played.mkdir()
    (played / "sitecustomize.py").write_text(OLD_GPU)
    mounts = (
        f"--volume={folders[0]}:/data:ro", f"--volume={out}:/out", f"--volume={played}:/played:ro",
        "--env=PYTHONPATH=/played",
    )  # fmt: skip
    done = container(IMAGE, "/data", "/out", "participant", "--device", "cuda", options=mounts)
    assert done.returncode == 127, done.stderr
    assert done.stderr.count("\n") == 1
    assert "the GPU Old (compute capability 3.0) cannot be used by torch" in done.stderr
    assert "Use --device cpu" in done.stderr
