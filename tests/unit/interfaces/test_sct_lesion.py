"""SCT's lesion network against a stand-in that checks its arguments and plays release 7.3's behaviours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import prepared_sessions as sessions
import pytest

from bids_scseg.errors import MissingToolError, SessionError, UsageError
from bids_scseg.interfaces import engine
from bids_scseg.interfaces.base import load_failure
from bids_scseg.interfaces.sct_lesion import (
    MEANING,
    FuseMaps,
    Limits,
    SegmentImage,
    engine_facts,
    read_map_record,
    record_map,
)
from bids_scseg.preprocess import prepare

STAND_IN = """#!{python}
import json, os, sys, time
import nibabel as nib, numpy as np
mode = os.environ.get("STAND_IN", "soft")
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
task, flag, image, out, name, *more = sys.argv[1:]
if task != "lesion_ms" or (flag, out) != ("-i", "-o") or more not in ([], ["-soft-ms-lesion"]):
    print("usage: sct_deepseg <task> -i -o", file=sys.stderr); sys.exit(2)
if not name.endswith(".nii.gz"):
    print("ValueError: unknown extension", file=sys.stderr); sys.exit(1)
if mode == "no-model":
    print("Model is not installed. Installing it now...\\nurlopen error", file=sys.stderr); sys.exit(1)
if mode == "exit1":
    print("RuntimeError: it broke", file=sys.stderr); sys.exit(1)
if mode == "hang":
    time.sleep(60)
given = nib.load(image)
values = np.zeros(given.shape, np.float32)
if mode != "empty":
    values[3:6, 3:6] = 0.8 if more else 1.0
    values[4, 4] = 0.4 if more else 0.0
if mode == "cast":
    values = values.astype(np.uint8).astype(np.float32)  # 0.8 and 0.4 become 0, in a file of floats
if mode == "large":
    values *= 7
if mode == "nan":
    values[0, 0, 0] = np.nan
affine = np.diag([1.0, 1.0, 1.5, 1.0]) if mode == "elsewhere" else given.affine
if mode != "silent":
    nib.save(nib.Nifti1Image(values, affine), name)
    with open(name.replace(".nii.gz", ".json"), "w") as sidecar:
        json.dump({{"GeneratedBy": [{{"ModelURL": ["https://example.org/model.zip"]}}]}}, sidecar)
if mode == "text":
    open(name, "w").write("no image")
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Puts the stand-in on the PATH; returns the arguments of all calls so far."""
    program = tmp_path / "sct" / "bin" / "sct_deepseg"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(log))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def image(tmp_path):
    # A name that a shell would take apart.
    path = tmp_path / "sub-01; echo $(id) T2w.nii.gz"
    data = np.arange(729, dtype=np.float32).reshape(9, 9, 9)
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    return path


def run(image, cwd, **inputs):
    cwd.mkdir(exist_ok=True)
    node = SegmentImage(in_file=str(image), task="lesion_ms", engine_sha256="0", **inputs)
    record = read_map_record(Path(node.run(cwd=str(cwd)).outputs.record_file))
    return record, np.load(cwd / record["map"]) if record["map"] else None


def test_one_call_where_the_soft_output_is_soft(calls, image, tmp_path):
    record, values = run(image, tmp_path / "node")
    assert calls() == [["lesion_ms", "-i", str(image), "-o", "lesions.nii.gz", "-soft-ms-lesion"]]
    assert record["kind"] == "soft"
    assert values[3, 3, 0] == pytest.approx(0.8)
    assert values[4, 4, 0] == pytest.approx(0.4)
    assert record["model_url"] == ["https://example.org/model.zip"]
    assert record["grid"]["affine"][2][2] == 2.0


def test_the_mask_serves_where_the_soft_output_was_cast_to_integers(calls, image, tmp_path, monkeypatch):
    """7.3 crops and casts: a lesion of 0.8 would be lost altogether."""
    monkeypatch.setenv("STAND_IN", "cast")
    record, values = run(image, tmp_path / "node")
    assert [call[5:] for call in calls()] == [["-soft-ms-lesion"], []]
    assert record["kind"] == "binary"
    assert values.sum() == (9 - 1) * 9  # a column of 3 x 3 x 9 voxels, its middle line not lesion


def test_an_image_without_lesions_is_a_map_of_zeros(calls, image, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "empty")
    record, values = run(image, tmp_path / "node")
    assert values.shape == (9, 9, 9)
    assert not values.any()
    assert record["problem"] is None


def test_an_unreadable_image_is_left_to_the_others(calls, image, tmp_path):
    image.write_bytes(image.read_bytes()[:200])
    record, values = run(image, tmp_path / "node")
    assert values is None
    assert record["problem"]["class"] == "ImageError"
    assert calls() == []


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("exit1", "exit code 1: RuntimeError: it broke"),
        ("no-model", "Install the model while online: sct_deepseg lesion_ms -install"),
        ("silent", "wrote no lesions.nii.gz"),
        ("elsewhere", "another affine; expected the image's lattice"),
        ("large", "holds values from 0 to 5.6; expected 0 to 1"),
        ("nan", "holds values from nan"),
        ("text", "cannot be read"),
    ],
)
def test_failures_say_what_happened_and_what_to_do(mode, words, calls, image, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", mode)
    with pytest.raises(SessionError, match="sct_deepseg") as caught:
        run(image, tmp_path / "node")
    assert words in str(caught.value)
    assert str(image) in str(caught.value)
    assert "--cord" not in str(caught.value)
    assert str(load_failure(tmp_path / "node")) == str(caught.value)


def test_a_map_of_an_earlier_call_is_not_taken_for_this_one(calls, image, tmp_path, monkeypatch):
    run(image, tmp_path / "node")
    monkeypatch.setenv("STAND_IN", "silent")
    with pytest.raises(SessionError, match="wrote no"):
        run(image, tmp_path / "node")


def test_a_hang_ends(calls, image, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "hang")
    with pytest.raises(SessionError, match=r"did not end within 1 s.*--model cord-lesion"):
        run(image, tmp_path / "node", timeout_s=1)


def test_facts_say_what_the_value_is():
    record = {"kind": "soft", "model_url": ["https://example.org/b"]}
    other = {"kind": "binary", "model_url": ["https://example.org/a", "https://example.org/b"]}
    unread = {"kind": None, "model_url": []}
    facts = engine_facts([record, other, unread], ["a", "b", "c"], engine="sct:lesion_ms", release="7.3")
    assert facts["outputs"] == {"a": "soft", "b": "binary"}
    assert facts["model_urls"] == ["https://example.org/a", "https://example.org/b"]
    assert "No probability" in facts["meaning"]
    assert MEANING["soft"] in facts["meaning"]
    assert MEANING["binary"] in facts["meaning"]
    assert facts["release"] == "7.3"


def test_maps_are_fused_and_an_image_that_could_not_be_read_has_no_say(calls, tmp_path):
    """One axial image whose map says 0.4 and, elsewhere in the record list, a sagittal one that is broken."""
    images, cords = sessions.session()
    case, _ = prepare.prepare_session({"Ax": images["Ax"]}, {"Ax": cords["Ax"]}, sessions.RECIPE)
    case.save(tmp_path / "case")
    records = []
    for name, grid in (("low", None), ("ax", sessions.AXIAL)):
        image, folder = tmp_path / f"{name}.nii.gz", tmp_path / name
        folder.mkdir()
        if grid is None:
            image.write_bytes(b"no image")
        else:
            nib.save(
                nib.Nifti1Image(np.arange(np.prod(grid.shape)).reshape(grid.shape) * 1.0, grid.affine), image
            )
        records.append(record_map(image, folder, task="lesion_ms", limits=Limits()))
    np.save(tmp_path / "ax" / "lesions.npy", np.full(sessions.AXIAL.shape, 0.4, np.float32))
    node = FuseMaps(
        case_files=[str(path) for path in sorted((tmp_path / "case").iterdir())],
        record_files=records,
        keys=["Sag", "Ax"],
        names=["low", "ax"],
        engine="sct:lesion_ms",
        release="7.3",
    )
    found = node.run(cwd=str(tmp_path)).outputs
    fused = np.load(found.probability_file)
    np.testing.assert_allclose(fused[case.coverage[1]], 0.4, atol=1e-6)
    assert not fused[~case.coverage[1]].any()
    assert json.loads(Path(found.engine_file).read_text())["outputs"] == {"ax": "soft"}


# -- choice of the engine --------------------------------------------------------------------------


def install(calls_folder, *names, release="7.3\n"):
    """What an installation of SCT has beside its programs."""
    (calls_folder / "spinalcordtoolbox").mkdir(exist_ok=True)
    (calls_folder / "spinalcordtoolbox" / "version.txt").write_text(release)
    for name in names:
        folder = calls_folder / "data" / "deepseg_models" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "source.json").write_text(json.dumps({"model_urls": [name]}))


def test_the_bundle_says_which_release_it_is(calls, tmp_path):
    install(tmp_path / "sct", "model_seg_ms_lesion", "model_seg_sc_contrast_agnostic")
    bundle = engine.load_engine("sct:lesion_ms")
    engine.check_engine(bundle)
    assert (bundle.name, bundle.engine, str(bundle.path)) == ("sct:lesion_ms",) * 3
    assert bundle.recipe.name == "cord-lesion"
    assert dict(bundle.provenance)["release"] == "7.3"
    assert "model_seg_ms_lesion" in dict(bundle.provenance)
    assert "model_seg_sc_contrast_agnostic" not in dict(bundle.provenance)
    assert "no probability" in bundle.summary.lower()


def test_another_release_or_network_is_another_checksum(calls, tmp_path):
    install(tmp_path / "sct", "model_seg_ms_lesion")
    first = engine.load_engine("sct:lesion_ms")
    install(tmp_path / "sct", release="7.4\n")
    second = engine.load_engine("sct:lesion_ms")
    install(tmp_path / "sct", "model_seg_ms_lesion_crop")
    third = engine.load_engine("sct:lesion_ms")
    assert len({item.weights_sha256 for item in (first, second, third)}) == 3
    assert len({item.inference_sha256 for item in (first, second, third)}) == 3


def test_a_network_that_is_not_installed_is_refused_before_sct_downloads_it(calls, tmp_path):
    install(tmp_path / "sct", "model_seg_sc_contrast_agnostic")
    with pytest.raises(MissingToolError, match="sct_deepseg lesion_ms -install"):
        engine.check_engine(engine.load_engine("sct:lesion_ms"))
    assert calls() == []


def test_absent_toolbox(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"not on the PATH.*Install it, or use --model cord-lesion"):
        engine.check_engine(engine.load_engine("sct:lesion_ms"))


@pytest.mark.parametrize("name", ["sct:", "sct:spinalcord", "sct:lesion_ms_axial_t2"])
def test_unknown_engines(name):
    with pytest.raises(UsageError, match="expected sct:lesion_ms, cord-finder, cord-lesion"):
        engine.load_engine(name)


def test_a_bundle_stays_a_bundle():
    bundle = engine.load_engine("cord-lesion")
    assert bundle.engine == ""
    engine.check_engine(bundle)
