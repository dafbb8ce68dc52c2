"""The written dataset: names that validate, the same bytes for a seed, truth that fits the images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.synth import dataset, session
from bids_scseg.synth.anatomy import Anatomy
from bids_scseg.synth.dataset import write_demo, write_training_set
from bids_scseg.synth.files import write_nifti, write_tsv
from bids_scseg.synth.protocol import Scan
from bids_scseg.synth.scanner import Image
from bids_scseg.synth.scenario import Scenario

TINY = (4, 4, 4)


def _errors(folder: Path) -> list[str]:
    tool = shutil.which("bids-validator-deno") or str(Path(sys.executable).with_name("bids-validator-deno"))
    if not Path(tool).is_file():
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run(
        [tool, str(folder), "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{i['code']} {i.get('location')}" for i in issues if i["severity"] == "error"]


def _blank(scan: Scan, rng: np.random.Generator, **_: object) -> Image:
    """An image without content: names do not depend on it."""
    zeros = np.zeros(TINY, np.uint8)
    return Image(
        data=rng.integers(1, 9, TINY).astype(np.int16), cord=zeros > 0, lesions=zeros,
        lesion_share=zeros.astype(np.float32), cnr=np.full(9, np.nan),
    )  # fmt: skip


def test_every_name_of_the_demo_validates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: Anatomy
) -> None:
    plan = session.plan_session

    def small(rng: np.random.Generator, anatomy: Anatomy, scenario: Scenario) -> list[Scan]:
        scans = plan(rng, anatomy, scenario)
        return [replace(scan, acquisition=replace(scan.acquisition, shape=TINY)) for scan in scans]

    monkeypatch.setattr(session, "plan_session", small)
    monkeypatch.setattr(session, "_scan", _blank)
    monkeypatch.setattr(session, "truth_lattice", lambda *_, **__: (TINY, np.eye(4)))
    monkeypatch.setattr(session, "volume_mm3", lambda *_: 100.0)
    monkeypatch.setattr(dataset, "draw_anatomy", lambda _: subject)
    write_demo(
        tmp_path, subjects=4
    )  # they hold every sequence, every distractor, and a session without lesions
    names = {path.name for path in tmp_path.rglob("sub-*.nii.gz") if "derivatives" not in path.parts}
    for end in (
        "acq-brain_T1w",
        "ce-gadolinium_T1w",
        "part-phase_chunk-1_T2starw",
        "mt-on_MTR",
        "run-2_T2w",
        "_UNIT1",
    ):
        assert any(name.endswith(f"{end}.nii.gz") for name in names), end
    assert any(name.startswith("sub-02_ses-2") for name in names)
    assert not any("acq-sag_" in name for name in names if name.startswith("sub-03"))
    assert _errors(tmp_path) == []
    assert _errors(tmp_path / "derivatives" / "labels") == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training")
    write_training_set(out, 1, seed=2, sequences=("T2StarAx",))
    return out


def test_same_seed_same_bytes(trained: Path, tmp_path: Path) -> None:
    write_training_set(tmp_path, 1, seed=2, sequences=("T2StarAx",))
    files = sorted(path.relative_to(trained) for path in trained.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((trained / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_masks_lie_on_their_image_s_lattice(trained: Path) -> None:
    sidecars = sorted((trained / "derivatives" / "labels").rglob("*_mask.json"))
    for sidecar in sidecars:
        content = json.loads(sidecar.read_text())
        if "Sources" not in content:
            continue
        image = nib.load(trained / content["Sources"][0].removeprefix("bids:raw:"))
        mask = nib.load(sidecar.with_suffix(".nii.gz"))
        assert mask.shape == image.shape
        np.testing.assert_allclose(mask.affine, image.affine)
    assert len(sidecars) == 5  # cord and lesions of two stacks, and the truth


def test_truth_at_half_a_millimetre_agrees_with_the_table(trained: Path) -> None:
    (path,) = (trained / "derivatives" / "labels").rglob("*_seg-lesions_res-iso_desc-truth_dseg.nii.gz")
    numbers = np.asanyarray(nib.load(path).dataobj)
    head, *rows = [
        line.split("\t") for line in path.with_suffix("").with_suffix(".tsv").read_text().splitlines()
    ]
    assert len(rows) == numbers.max()
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        # voxels at least half filled, against the integral of a soft-edged lesion
        measured = (numbers == int(cells["index"])).sum() * 0.125
        assert measured == pytest.approx(float(cells["volume_mm3"]), rel=0.15)


def test_nifti_bytes_and_header(tmp_path: Path) -> None:
    affine = np.diag([0.8, 0.8, 3.0, 1.0])
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)


def test_tables_write_undefined_as_not_available(tmp_path: Path) -> None:
    write_tsv(tmp_path / "t.tsv", ("a", "b", "c"), [{"a": 1.0, "b": float("nan")}])
    assert (tmp_path / "t.tsv").read_text() == "a\tb\tc\n1.0000\tn/a\tn/a\n"
