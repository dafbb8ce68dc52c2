"""The image with the Spinal Cord Toolbox, from a repository that plays it: every step but its downloads."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from integration.containers import build_image, container, folder_of_user, need, run, said
from toolbox import WORKING, make_repository

pytestmark = pytest.mark.slow

IMAGE = "localhost/bids_scseg:sct-test"


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    need("git")
    source = make_repository(tmp_path_factory.mktemp("toolbox") / "source", WORKING)
    return build_image(IMAGE, SCT="7.3", SCT_SOURCE=str(source))


def shell(script: str, *options: str) -> str:
    return said(container(IMAGE, "-c", script, options=("--entrypoint=sh", *options)))


def test_version_names_the_toolbox_and_its_models() -> None:
    version = said(container(IMAGE, "--version"))
    assert "\nsct_deepseg: release 7.3 at /opt/sct/bin/sct_deepseg (calls are those of SCT 7.3)\n" in version
    models = re.findall(r"^sct model stand_in_(\w+): sha256 [0-9a-f]{64}$", version, flags=re.MULTILINE)
    assert models == ["lesion_ms", "spinalcord", "spine"]


def test_what_compiles_and_fetches_stays_in_its_stage() -> None:
    assert shell("command -v gcc git curl || echo none") == "none\n"
    assert shell("/opt/sct/bin/sct_compiled && echo runs") == "runs\n"
    assert "libglib-2.0.so.0" in shell("/sbin/ldconfig -p"), "its viewers' library, loaded by its programs"
    assert shell("find /opt/sct ! -readable -o -name .git") == ""


def test_cords_and_levels_come_from_the_toolbox(tmp_path: Path) -> None:
    demo = folder_of_user(tmp_path / "demo")
    data = f"--volume={demo}:/demo"
    make = ("/demo/bids", "--subjects", "1")
    said(container(IMAGE, "demo", *make, options=("--entrypoint=scseg", data), minutes=20))
    # The default run: whatever the toolbox can do, it does. One sequence is enough to see that.
    how = ("--sequences", "T2Sag", "--device", "cpu", "--nprocs", "1")
    said(container(IMAGE, "/demo/bids", "/demo/out", "participant", *how, options=(data,), minutes=30))
    out = demo / "out"
    (mask,) = out.rglob("*_acq-sag_chunk-1_label-SC_desc-T2w_mask.json")
    assert "sct_deepseg spinalcord" in json.loads(mask.read_text())["Description"]
    with (out / "logs" / "status.tsv").open(newline="") as table:
        (row,) = csv.DictReader(table, delimiter="\t")
    assert row["state"] == "done"
    (summary,) = out.rglob("*_summary.json")
    assert json.loads(summary.read_text())["arc_origin_anatomical"] is True
    shutil.rmtree(demo)


def test_another_release_than_was_asked_for_ends_the_build(tmp_path: Path) -> None:
    """The tag 7.2 of this repository says that it is 7.3: what is installed is what is named, or nothing."""
    source = make_repository(tmp_path / "source", WORKING)
    with pytest.raises(AssertionError, match=r"release 7\.3 was installed, expected 7\.2"):
        build_image("localhost/bids_scseg:never", SCT="7.2", SCT_SOURCE=str(source))
    assert run("buildah", "inspect", "localhost/bids_scseg:never").returncode != 0
