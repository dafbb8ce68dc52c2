"""Bad input: one clear line for each case, everywhere it must stand; good sessions beside it finish."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from integration.checks import call, page_text, status, unfinished
from integration.cohorts import (
    STAR,
    UPPER,
    Scan,
    add_session,
    describe,
    image_path,
    mask_path,
    rewrite,
)
from phantoms import lattice

from bids_scseg.cli import participant

PIXDIM = 76  # byte in a NIfTI-1 header where the voxel sizes start, after one number of their own


def truncated(path: Path) -> None:
    """A download that was cut short."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(path: Path) -> None:
    """Bytes changed in the middle; the length is right."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = os.urandom(64)
    path.write_bytes(content)


def not_nifti(path: Path) -> None:
    path.write_bytes(gzip.compress(b"this is no image" * 100))


def four_dimensional(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 3, axis=-1), image.affine), path)


def nan(path: Path) -> None:
    rewrite(path, lambda data: np.full_like(data, np.nan))


def constant(path: Path) -> None:
    rewrite(path, lambda data: np.full(data.shape, 7, np.int16))


def one_slice(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, :1], image.affine), path)


def spacing(value: float) -> Callable[[Path], None]:
    """Write a voxel size into the header as it stands, without repairs."""

    def change(path: Path) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[PIXDIM + 8 : PIXDIM + 12] = np.float32(value).tobytes()
        path.write_bytes(gzip.compress(bytes(content)))

    return change


def contradicting_forms(path: Path) -> None:
    image = nib.load(path)
    other = image.affine.copy()
    other[:3, 3] += 60
    image.set_qform(other, code=1)
    nib.save(image, path)


def empty_mask(path: Path) -> None:
    subject = path.name.split("_")[0]
    rewrite(mask_path(path.parents[2], subject, STAR.rest), lambda data: np.zeros(data.shape, np.uint8))


def no_mask(path: Path) -> None:
    mask_path(path.parents[2], path.name.split("_")[0], STAR.rest).unlink()


def no_image(path: Path) -> None:
    path.unlink()


def other_contrast(path: Path) -> None:
    path.rename(path.with_name(path.name.replace("T2starw", "PDw")))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One session with one image that is spoilt; `words` are in the cause."""

    spoil: Callable[[Path], None]
    words: str
    step: bool = False  # found out while running rather than while planning


CASES = {
    "nofile": Case(spoil=no_image, words="it has no images"),
    "nomatch": Case(spoil=other_contrast, words="no sequence of this recipe"),
    "truncated": Case(spoil=truncated, words="truncated"),
    "damaged": Case(spoil=damaged, words="cannot be read", step=True),
    "text": Case(spoil=not_nifti, words="not a NIfTI file"),
    "fourd": Case(spoil=four_dimensional, words="4 dimensions (48 x 48 x 12 x 3)"),
    "nan": Case(spoil=nan, words="are NaN or infinite", step=True),
    "constant": Case(spoil=constant, words="every voxel has the value 7", step=True),
    "zero": Case(spoil=spacing(0.0), words="voxel sizes"),
    "negative": Case(spoil=spacing(-1.0), words="voxel sizes"),
    "forms": Case(spoil=contradicting_forms, words="sform and qform differ by up to"),
    "slice": Case(spoil=one_slice, words="a single slice (48 x 48 x 1)"),
    "emptymask": Case(spoil=empty_mask, words="no spinal cord found", step=True),
    "nocord": Case(spoil=no_mask, words="no spinal cord found", step=True),
}
SAGITTAL = Scan(rest="acq-sag_T2w", grid=UPPER)
T1 = Scan(rest="acq-sag_T1w", grid=UPPER)
BESIDE = lattice(spacing=(1.0, 1.0, 5.0), size_mm=(48, 48, 60), center=(300, 0, 0), orientation="LPS")
FAR = lattice(spacing=(1.0, 1.0, 5.0), size_mm=(48, 48, 60), center=(0, 0, -700), orientation="LPS")


@pytest.fixture(scope="module")
def ward(tmp_path_factory) -> Path:
    """A good session, two with good and bad images, and one session for each case."""
    root = describe(tmp_path_factory.mktemp("ward") / "bids")
    add_session(root, "sub-good", [STAR])
    for name, case in CASES.items():
        add_session(root, f"sub-{name}", [STAR])
        case.spoil(image_path(root, f"sub-{name}", STAR.rest))
    add_session(root, "sub-mixed", [STAR, SAGITTAL, T1])
    constant(image_path(root, "sub-mixed", SAGITTAL.rest))
    truncated(image_path(root, "sub-mixed", T1.rest))
    add_session(root, "sub-apart", [STAR, T1])
    for rest, grid in (("UNIT1", BESIDE), ("acq-ax_T2w", FAR)):
        source = image_path(root, "sub-apart", STAR.rest)
        data = np.asarray(nib.load(source).dataobj)
        nib.save(nib.Nifti1Image(data, grid.affine), image_path(root, "sub-apart", rest))
    return root


@dataclass(frozen=True)
class Round:
    """What the run over the ward said and left."""

    root: Path
    out: Path
    code: int
    err: str


@pytest.fixture(scope="module")
def ward_round(ward, run, tmp_path_factory) -> Round:
    out = tmp_path_factory.mktemp("ward") / "out"
    result = run(ward, out, "-d", f"labels={ward / 'derivatives' / 'labels'}")
    return Round(ward, out, result.code, result.err)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_session_is_refused_in_clear_words_everywhere(name, ward_round):
    case, label = CASES[name], f"sub-{name}"
    row = status(ward_round.out)[label]
    assert row["state"] == "refused"
    assert case.words in row["cause"]
    assert "expected" in row["cause"]
    assert row["remedy"] != "n/a"
    assert (row["step"] != "start") == case.step
    if name != "nofile":
        image = image_path(ward_round.root, label, STAR.rest).name
        shown = image.replace("T2starw", "PDw") if name == "nomatch" else image
        assert Path(row["file"]).name == (shown if name != "emptymask" else image)
    lines = [line for line in ward_round.err.splitlines() if line.startswith("[") and f" {label}: " in line]
    assert len(lines) == 1
    assert case.words in lines[0]
    assert row["remedy"] in lines[0]
    text = page_text(ward_round.out / f"{label}.html")
    assert case.words in text
    assert row["remedy"] in text
    log = json.loads((ward_round.out / "logs" / f"{label}.json").read_text())
    assert log["cause"] == row["cause"]
    assert not (ward_round.out / label).exists()


def test_the_run_goes_on_and_tells_by_its_exit_code(ward_round):
    assert ward_round.code == 1
    rows = status(ward_round.out)
    assert len(rows) == len(CASES) + 3
    assert {name for name, row in rows.items() if row["state"] == "done"} == {
        "sub-good",
        "sub-mixed",
        "sub-apart",
    }
    assert rows["sub-good"]["warnings"] == "n/a"
    assert f"3 of {len(CASES) + 3} sessions done, {len(CASES)} refused" in ward_round.err
    assert "Traceback" not in ward_round.err
    assert unfinished(ward_round.out) == []
    assert list((ward_round.out / "sub-good" / "anat").glob("*_dseg.tsv"))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (
            "sub-mixed",
            "sub-mixed_acq-sag_T2w.nii.gz: every voxel has the value 7; expected an image with contrast",
        ),
        ("sub-mixed", "sub-mixed_acq-sag_T1w.nii.gz is not used: truncated"),
        ("sub-apart", "sub-apart_UNIT1.nii.gz is not used: its field of view lies"),
        ("sub-apart", "sub-apart_acq-ax_T2w.nii.gz is not used: its field of view lies"),
    ],
)
def test_a_bad_image_among_good_ones_is_told(label, words, ward_round):
    assert words in status(ward_round.out)[label]["warnings"]
    assert words in ward_round.err
    assert words in page_text(ward_round.out / f"{label}.html")


def test_the_report_says_why_a_sequence_is_absent(ward_round):
    text = page_text(ward_round.out / "sub-mixed.html")
    assert "Every voxel has the value 7" in text
    assert "replaced by the features of T2StarAx" in text.lower().replace("t2starax", "T2StarAx")


def test_sequences_of_two_places_of_the_cord_are_told(run, tmp_path):
    """Slices 25 mm below the sagittal image: possible, so used, and told."""
    root = describe(tmp_path / "bids")
    below = lattice(spacing=(1.0, 1.0, 5.0), size_mm=(48, 48, 60), center=(0, 0, -65), orientation="LPS")
    add_session(root, "sub-01", [SAGITTAL, Scan(rest="acq-ax_T2starw", grid=below)])
    result = run(root, tmp_path / "out", "--dry-run", "-d", f"labels={root / 'derivatives' / 'labels'}")
    assert result.code == 0
    assert "its field of view lies 25 mm above or below that of T2Sag" in result.out


# -- the dataset, the options, the folders ---------------------------------------------------------


def one_line(err: str, *words: str) -> None:
    lines = [line for line in err.splitlines() if line.startswith("bids_scseg: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0]


def bare(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda root: describe(root), 66, "no sub-* folder; expected at least one participant"),
        (bare, 16, "no dataset_description.json"),
        (lambda root: root, 66, "no such folder"),
    ],
    ids=["empty dataset", "no dataset", "absent"],
)
def test_no_dataset(make, code, words, run, tmp_path):
    root = make(tmp_path / "bids")
    result = run(root, tmp_path / "out")
    assert result.code == code
    one_line(result.err, str(root), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--bids-filter-file", "{tmp}/broken.json"), 65, "cannot be read"),
        (("--bids-filter-file", "{tmp}/unknown.json"), 65, "unknown sequence 'FLAIR'"),
        (("--bids-filter-file", "{tmp}/absent.json"), 66, "no such filter file"),
        (("--sequences", "FLAIR"), 64, "unknown sequence 'FLAIR'"),
        (("-d", "labels={tmp}/absent"), 66, "there is no derivatives folder for labels"),
        (("--model", "{tmp}/pickled"), 65, "other files could run code"),
        (("--model", "{tmp}/absent"), 66, "there is no model"),
        (("--cord", "mine"), 64, "neither a method nor a derivatives folder"),
        (("--json-plan", "{tmp}/file/plan.json", "--dry-run"), 73, "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options_stop_the_run_before_it_writes(arguments, code, words, run, cohort, model, tmp_path):
    (tmp_path / "broken.json").write_text("{not json")
    (tmp_path / "unknown.json").write_text('{"FLAIR": {"acquisition": "sag"}}')
    (tmp_path / "file").write_text("")
    (shutil.copytree(model, tmp_path / "pickled") / "weights.pkl").write_bytes(b"\x80\x04.")
    result = run(cohort, tmp_path / "out", *(item.format(tmp=tmp_path) for item in arguments))
    assert result.code == code
    one_line(result.err, words)
    assert not (tmp_path / "out").exists()


def file_of_that_name(folder: Path) -> Path:
    out = folder / "out"
    out.write_text("")
    return out


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "out"


def other_dataset(folder: Path) -> Path:
    return describe(folder / "out", DatasetType="derivative", GeneratedBy=[{"Name": "other"}])


def read_only(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    out = bare(folder / "out")
    out.chmod(0o555)
    return out


@pytest.mark.parametrize("make", [file_of_that_name, below_a_file, other_dataset, read_only])
def test_output_that_cannot_be_written(make, run, cohort, tmp_path):
    out = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = run(cohort, out)
    assert result.code == 73
    one_line(result.err, str(out))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("inner", ["", "sub-02/anat/out"])
def test_output_in_the_input(inner, run, cohort):
    before = sorted(cohort.rglob("*"))
    result = run(cohort, cohort / inner)
    assert result.code == 73
    one_line(result.err, "choose a folder of its own".capitalize())
    assert sorted(cohort.rglob("*")) == before


def test_absent_device(cohort, model, finder, tmp_path, monkeypatch):
    monkeypatch.setattr(participant, "CORD_FINDER", str(finder))
    result = call(
        cohort, tmp_path / "out", "participant", "--model", model, "--cord", "builtin", "--device", "cuda:7"
    )
    assert result.code == 127
    one_line(result.err, "device cuda:7 is not there", "--device cpu")
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_no_part_of_a_session(run, cohort, tmp_path, monkeypatch):
    """The disk is full after the first files: none of that session's results stay."""
    from bids_scseg.bids import derivatives
    from bids_scseg.errors import OutputError

    def full(out, relative, *_, **__):
        raise OutputError("cannot be written (No space left on device)", file=relative, remedy="free space")

    monkeypatch.setattr(derivatives, "write_tsv", full)
    out = tmp_path / "out"
    labels = f"labels={cohort / 'derivatives' / 'labels'}"
    result = run(cohort, out, "-d", labels, "--participant-label", "02")
    assert result.code == 1
    row = status(out)["sub-02"]
    assert (row["state"], row["step"]) == ("failed", "write")
    assert "No space left" in row["cause"]
    assert [path for path in (out / "sub-02").rglob("*") if path.is_file()] == []
    assert unfinished(out) == []


def test_an_image_that_was_never_there(run, tmp_path):
    """A link without target, as in datasets whose content was not fetched."""
    root = describe(tmp_path / "bids")
    path = image_path(root, "sub-01", STAR.rest)
    path.parent.mkdir(parents=True)
    path.symlink_to("../../.git/annex/objects/absent")
    result = run(root, tmp_path / "out", "--dry-run")
    assert result.code == 0
    assert "a link whose target is absent" in result.out
