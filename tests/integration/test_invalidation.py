"""What makes a run compute again, and what does not."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from integration.checks import outputs, page_text
from integration.cohorts import image_path, mask_path, rewrite

from bids_scseg.inference.bundle import load_bundle, save_bundle
from bids_scseg.workflows import nodes

CORD, PREPARED, SEGMENTED, MEASURED = (
    "cord/*/cord.json", "lesions/prepare/geometry.json", "lesions/segment/probability.npy",
    "lesions/measure/labels.npy",
)  # fmt: skip
EVERYTHING = {CORD, PREPARED, SEGMENTED, MEASURED}
STAR = "acq-ax_T2starw"


def stamps(work: Path) -> dict[str, list[int]]:
    """When each result was computed."""
    root = work / "sub-02" / "session"
    return {name: [path.stat().st_mtime_ns for path in sorted(root.glob(name))] for name in EVERYTHING}


@pytest.fixture
def computed(run, again):
    """Run subject 2 again; which steps were computed anew."""

    def steps(*more: object, work: Path = again.out / "work", bids: Path = again.bids) -> set[str]:
        before = stamps(work)
        labels = f"labels={bids / 'derivatives' / 'labels'}"
        one = ("-d", labels, "--output-spaces", "all", "--participant-label", "02", "-w", work)
        result = run(bids, again.out, *one, *more)
        assert result.code == 0, result.err
        after = stamps(work)
        assert all(before.values()) and all(after.values())
        return {name for name in EVERYTHING if after[name] != before[name]}

    return steps


@pytest.fixture
def own_inputs(again):
    """The images and masks of subject 2 may be changed; afterwards they are what they were."""
    paths = [image_path(again.bids, "sub-02", STAR), mask_path(again.bids, "sub-02", STAR)]
    kept = {path: (path.read_bytes(), path.stat()) for path in paths}
    yield paths
    for path, (content, stat) in kept.items():
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_threads_memory_and_places_change_nothing(computed, again, own_inputs, tmp_path):
    """All at once: other threads, sessions at once and memory, a moved work folder, a touched input."""
    moved = (again.out / "work").rename(tmp_path / "moved")
    for path in own_inputs:
        os.utime(path, (time.time() + 60,) * 2)
    assert computed("--omp-nthreads", "3", "--nprocs", "2", "--mem", "9GB", work=moved) == set()


def test_a_dataset_that_was_moved_changes_nothing(computed, again, tmp_path):
    before = outputs(again.out)
    moved = Path(shutil.copytree(again.bids, tmp_path / "moved"))
    assert computed(bids=moved) == set()
    assert outputs(again.out) == before
    assert "acq-ax_T2starw" in page_text(again.out / "sub-02.html")


def test_a_changed_image_computes_again_what_depends_on_it(computed, own_inputs):
    image, _ = own_inputs
    rewrite(image, lambda data: np.where(data == data.max(), data - 1, data).astype(np.int16))
    assert computed() >= {PREPARED, SEGMENTED, MEASURED}


def test_a_changed_cord_mask_computes_again_what_depends_on_it(computed, own_inputs):
    _, mask = own_inputs
    rewrite(mask, lambda data: np.roll(data, 1, axis=0).astype(np.uint8))
    assert computed() == EVERYTHING


def test_another_version_of_the_code_computes_all_again(computed, monkeypatch):
    """The version of its numbers, that is: a release that gives the same ones takes old results."""
    monkeypatch.setattr(nodes, "NUMERICAL_VERSION", f"{nodes.NUMERICAL_VERSION}+1")
    assert computed() == EVERYTHING


def variant(model: Path, folder: Path, *, scale: float = 1.0, **grid: float) -> Path:
    """The tiny model with other weights, or another prepared grid."""
    from safetensors.numpy import load_file

    bundle = load_bundle(model)
    weights = {name: value * scale for name, value in load_file(bundle.path / "weights.safetensors").items()}
    recipe = replace(bundle.recipe, grid=replace(bundle.recipe.grid, **grid))
    save_bundle(
        folder,
        weights,
        recipe=recipe,
        threshold=bundle.threshold,
        provenance={"data": "none"},
        card="# Other",
    )
    return folder


def test_another_model_segments_again_and_prepares_not(computed, model, tmp_path):
    other = variant(model, tmp_path / "other", scale=1.5)
    assert computed("--model", other) == {SEGMENTED, MEASURED}


def test_another_recipe_prepares_again(computed, model, tmp_path):
    other = variant(model, tmp_path / "other", margin_mm=14.0)
    assert computed("--model", other) == {PREPARED, SEGMENTED, MEASURED}
