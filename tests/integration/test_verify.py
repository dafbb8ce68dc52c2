"""``scseg verify`` after a real run: all is well until a bit flips, a source goes, a lattice moves."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from integration.checks import Result, page_text

from bids_scseg.bids import checksums
from bids_scseg.bids.checksums import read_list
from bids_scseg.bids.validator import validate
from bids_scseg.cli.tools import main
from bids_scseg.workflows import verification
from bids_scseg.workflows.verification import verify_run

MASK = "sub-02/anat/sub-02_acq-ax_label-lesion_mask.nii.gz"


def verify(*arguments: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["verify", *map(str, arguments), "--no-validator"])
    return Result(code, out.getvalue(), err.getvalue())


def test_a_good_run_passes_and_its_verdict_stands_in_the_logs(good):
    assert "BIDS validator: not run" in good.result.err
    result = verify(good.out)
    assert result.code == 0, result.out
    verdict = json.loads((good.out / "logs" / "verification.json").read_text())
    assert (verdict["verdict"], verdict["sessions"], verdict["failed"]) == ("passed", 3, [])
    assert verdict["files"] > 60 and verdict["sources"] > 50
    maps = [
        path
        for kind in ("mask", "probseg", "dseg")
        for path in good.out.rglob(f"*_{kind}.nii.gz")
        if "work" not in path.relative_to(good.out).parts
    ]
    assert verdict["lattices"] == len(maps) >= 12  # cord, map, mask and lesions, in three sessions at least
    one = json.loads((good.out / "logs" / "verification" / "sub-02.json").read_text())
    assert one["verdict"] == "passed" and one["problems"] == []


def test_the_sessions_page_says_what_was_verified(good):
    assert "lattices are those of their sources" in page_text(good.out / "sub-02.html")


def test_every_output_has_its_checksum_and_sha256sum_agrees(good):
    listed = (good.out / checksums.MERGED).read_text().splitlines()
    names = {line.split("  ", 1)[1] for line in listed}
    there = {
        path.relative_to(good.out).as_posix()
        for path in good.out.rglob("*")
        if path.is_file() and path.relative_to(good.out).parts[0] not in ("work", "logs")
    }
    assert names == there
    if shutil.which("sha256sum"):
        done = subprocess.run(
            ["sha256sum", "--check", "--quiet", checksums.MERGED],
            cwd=good.out,
            check=False,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [MASK, "sub-02.html", "README.md", "sub-02/anat/sub-02_geometry.json"])
def test_a_flipped_bit_is_found(again, name):
    path = again.out / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = verify(again.out)
    assert result.code == 65
    assert f"wrong: {name}: SHA-256 is" in result.out
    assert "1 things are wrong" in result.err


def test_what_is_missing_damaged_or_unfinished_is_found(again):
    (again.out / MASK).unlink()
    (again.out / "logs" / "checksums" / "sub-01_ses-1.sha256").unlink()
    (again.out / "logs" / "checksums" / "sub-01_ses-2.sha256").write_text("nonsense\n")
    result = verify(again.out, "--json")
    assert result.code == 65
    found = {item["file"]: item["found"] for item in json.loads(result.out)["problems"]}
    assert found[MASK] == "is not there"
    assert "unfinished" in found["sub-01_ses-1"]
    assert "no checksum" in found["logs/checksums"]


def rewrite(out, name, change):
    """Change a file as its own writer would, checksum included: sources and lattices are looked at anyway."""
    path = out / name
    change(path)
    checksums.record(out, "sub-02", [name], add=True)


def moved(path):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[2, 3] += 0.5
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)


def smaller(path):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), path)


def sources(*uris):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), "Sources": list(uris)}))

    return change


SIDECAR = MASK.replace(".nii.gz", ".json")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (MASK, moved, "lies 0.50 mm from sub-02_acq-ax_T2starw.nii.gz"),
        (MASK, smaller, "shape (47, 48, 12); expected (48, 48, 12)"),
        (SIDECAR, sources("bids:raw:sub-02/anat/sub-02_absent.nii.gz"), "is not there"),
        (SIDECAR, sources("bids:raw:../../etc/passwd"), "leads out of its dataset"),
        (SIDECAR, sources("bids:other:x.nii.gz"), "a dataset that is not there"),
        (SIDECAR, sources("sub-02/anat/x.nii.gz", 3), "is no BIDS URI"),
        (SIDECAR, lambda path: path.write_text("[" * 9999), "as JSON"),
    ],
)
def test_lattices_and_sources_are_compared(again, name, change, words):
    rewrite(again.out, name, change)
    result = verify(again.out)
    assert result.code == 65
    assert words in result.out


def test_a_raw_dataset_that_was_moved_can_be_named(again, tmp_path):
    description = again.out / "dataset_description.json"
    data = json.loads(description.read_text())
    data["DatasetLinks"]["raw"] = (tmp_path / "gone").as_uri()
    description.write_text(json.dumps(data))
    checksums.record(again.out, "dataset", ["dataset_description.json"], add=True)
    result = verify(again.out)
    assert result.code == 65
    assert "the dataset 'raw' is not at" in result.out and "--raw" in result.out
    assert verify(again.out, "--raw", again.bids).code == 0


def test_a_folder_of_something_else(tmp_path):
    assert verify(tmp_path).code == 66
    (tmp_path / "dataset_description.json").write_text("[]")
    assert verify(tmp_path).code == 65


def test_after_a_run_the_validator_waits_for_others(again, monkeypatch):
    monkeypatch.setattr(verification, "validate", validate)
    (again.out / "logs" / ".sub-03.lock").touch()
    verdict = verify_run(again.out, ["sub-02"])
    assert verdict.passed
    assert verdict.validator.state in ("passed", "not run")
    if verdict.validator.state == "passed":
        assert verdict.validator.errors == 0


def test_a_second_run_brings_back_what_was_damaged(run, again):
    (again.out / MASK).write_bytes(b"damaged")
    assert verify(again.out).code == 65
    result = run(
        again.bids, again.out, "-d", again.labels, "--output-spaces", "all", "--participant-label", "02"
    )
    assert result.code == 0, result.err
    assert verify(again.out).code == 0
    assert list(read_list(again.out, "sub-02"))
