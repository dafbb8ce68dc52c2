"""Singularity.def, built and run as on a cluster: nothing of the host but the folders that are named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.containers import HERE, ROOT, need, run, said

from bids_scseg import __version__
from bids_scseg.cli.version import code_checksum

pytestmark = pytest.mark.slow

ALONE = ("--cleanenv", "--containall")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The image, and what its build printed, which ends with %test: the demo, both levels.

    Without compression: that would take longer than all the rest.
    """
    need("apptainer", "buildah", "debootstrap")
    folder = tmp_path_factory.mktemp("apptainer")
    image = folder / "bids_scseg.sif"
    done = run(str(HERE / "apptainer_build.sh"), str(image), "--mksquashfs-args=-noI -noD -noF", minutes=90)
    yield image, said(done) + done.stderr
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def sif(built: tuple[Path, str]) -> str:
    return str(built[0])


@pytest.fixture(scope="module")
def bids(sif: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    words = ("scseg", "demo", "/demo/bids", "--subjects", "1")
    said(run("apptainer", "exec", *ALONE, "-B", f"{folder}:/demo", sif, *words, minutes=20))
    return folder / "bids"


def test_the_test_of_the_definition_passed_while_it_was_built(built: tuple[Path, str]) -> None:
    assert "selftest passed in " in built[1]


def test_version_and_labels(sif: str) -> None:
    version = said(run("apptainer", "run", *ALONE, sif, "--version"))
    assert version.startswith(f"bids_scseg {__version__} ")
    assert f"code: sha256 {code_checksum()}\n" in version
    assert "sct_deepseg: not installed" in version
    labels = said(run("apptainer", "inspect", "--labels", sif))
    assert f"org.opencontainers.image.version: {__version__}" in labels


def test_nothing_of_the_caller_gets_in(sif: str) -> None:
    outside = {"OMP_NUM_THREADS": "7", "PYTHONPATH": "/nowhere", "SINGULARITYENV_MKL_NUM_THREADS": "1"}
    script = f'echo $OMP_NUM_THREADS ${{PYTHONPATH:-none}} $MPLCONFIGDIR; test -e "{ROOT}" && echo seen'
    done = run("apptainer", "exec", *ALONE, sif, "sh", "-c", script, **outside)
    threads, path, cache = done.stdout.split()  # and not "seen": of the host's folders none is there
    assert (threads, path) == ("1", "none")
    assert cache.startswith("/tmp/bids_scseg-")  # noqa: S108


def test_one_session_as_a_cluster_runs_it(sif: str, bids: Path) -> None:
    out = bids.parent / "out"
    out.mkdir()
    binds = ("-B", f"{bids}:/data:ro", "-B", f"{out}:/out", "-B", f"{bids.parent}:/tmp")
    how = ("--participant-label", "01", "--sequences", "T2Sag", "--cord", "builtin", "--nprocs", "1")
    done = run("apptainer", "run", *ALONE, *binds, sif, "/data", "/out", "participant", *how, minutes=30)
    said(done)
    assert "inference runs on the CPU. For a GPU: start the image with --nv" in done.stderr
    assert (out / "sub-01.html").is_file()
    assert "\tdone\t" in (out / "logs" / "status.tsv").read_text()


@pytest.mark.parametrize(
    ("mode", "wish", "code", "words"),
    [
        (":ro", (), 73, "cannot be written (Read-only file system)"),
        ("", ("--device", "cuda"), 127, "start the image with --nv"),
        ("", ("--cord", "sct"), 127, "sct_deepseg is not on the PATH"),
    ],
)
def test_what_is_missing_is_one_line_at_the_start(
    sif: str, bids: Path, tmp_path: Path, mode: str, wish: tuple[str, ...], code: int, words: str
) -> None:
    binds = ("-B", f"{bids}:/data:ro", "-B", f"{tmp_path}:/out{mode}")
    done = run("apptainer", "--quiet", "run", *ALONE, *binds, sif, "/data", "/out", "participant", *wish)
    assert done.returncode == code, done.stderr
    assert [words in line for line in done.stderr.splitlines()] == [True], done.stderr
