"""The packaged weights on computed subjects that no training saw: they still find what they found.

The bounds are generous: they catch weights, recipes or code that do not belong together, not a slightly worse
model (``benchmarks/lesion_demo.py`` measures that).
"""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from integration.checks import status

from bids_scseg.inference.bundle import load_bundle, packaged_models
from bids_scseg.measure.overlap import overlap_table
from bids_scseg.measure.profiles import PROFILES
from bids_scseg.preprocess.cordmask import found_cord
from bids_scseg.space.nifti import read_image

pytestmark = pytest.mark.slow

SEED = 5150  # of the demo generator; no model was trained or judged on it
SEQUENCES = ("T2Sag", "STIR", "T2StarAx")
#: Images on which the cord finder is judged: another contrast and another plane each.
FINDER_IMAGES = (
    "sub-01/anat/sub-01_acq-sag_chunk-1_T2w",
    "sub-02/ses-1/anat/sub-02_ses-1_acq-axgre_chunk-1_T2starw",
    "sub-03/anat/sub-03_acq-sagstir_chunk-1_T2w",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Three subjects with four sessions, and their truth."""
    if not {"cord-lesion", "cord-finder"} <= set(packaged_models()):
        pytest.skip("the packaged models are not here")
    root = tmp_path_factory.mktemp("demo") / "bids"
    command = [sys.executable, "-m", "bids_scseg.cli.tools", "demo", str(root)]
    subprocess.run([*command, "--subjects", "3", "--seed", str(SEED)], check=True, capture_output=True)
    return root


def values(path):
    return np.asarray(nib.load(path).dataobj)


def visible_lesions(labels, session):
    """Numbers of the true lesions that a sequence used really shows (contrast-to-noise of 2 or more)."""
    (table,) = labels.joinpath(*session.split("_"), "anat").glob("*desc-truth_dseg.tsv")
    truth = pd.read_csv(table, sep="\t", keep_default_na=False)
    shown = (truth[[f"realised_{name}" for name in SEQUENCES]] == "visible").any(axis=1)
    return set(truth["index"][shown])


def session_counts(out, labels, session):
    """Visible lesions, those found, predicted lesions, and those that are right, over the anchor's images.

    By the rules ``walsh2024``, on the images as acquired: a lesion in two slabs is found if either finds it,
    and right if it is in either.
    """
    anat = out.joinpath(*session.split("_"), "anat")
    visible = visible_lesions(labels, session)
    present, found, predicted, right = set(), set(), set(), set()
    for path in sorted(anat.glob("*_chunk-*_seg-lesions_dseg.nii.gz")):
        ours, truth = values(path), values(labels.joinpath(*session.split("_"), "anat", path.name))
        theirs, mine = (np.unique(volume[volume > 0]) for volume in (truth, ours))
        table = overlap_table(_dense(truth, theirs), _dense(ours, mine))
        hit, good = PROFILES["walsh2024"].match(table)
        present |= visible & set(theirs.tolist())
        found |= visible & set(theirs[hit].tolist())
        predicted |= set(mine.tolist())
        right |= set(mine[good].tolist())
    return len(present), len(found), len(predicted), len(right)


def _dense(volume, numbers):
    """The same lesions numbered 1, 2, … without gaps."""
    return np.where(volume > 0, np.searchsorted(numbers, volume) + 1, 0).astype(np.int32)


def test_the_lesion_model_finds_visible_lesions_and_little_else(demo, tmp_path):
    out, labels = tmp_path / "out", demo / "derivatives" / "labels"
    command = [sys.executable, "-m", "bids_scseg", str(demo), str(out), "participant", "--nprocs", "1"]
    command += ["-d", f"labels={labels}", "--cord", "builtin", "--sequences", *SEQUENCES, "--clean-workdir"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = status(out)
    assert done.returncode == 0 and len(rows) == 4, done.stderr
    counts = np.array([session_counts(out, labels, session) for session in rows])
    visible, found, predicted, right = counts.sum(axis=0)
    print(f"visible {found} of {visible}, right {right} of {predicted}; by session {counts.tolist()}")
    # Measured when this was written: 7 of 13 found (1 of 4, 3 of 3, 2 of 3, 1 of 3), 7 of 7 right.
    assert found / visible >= 0.35
    assert predicted > 0 and right / predicted >= 0.7


def test_the_cord_finder_finds_the_cord_where_it_is(demo):
    from bids_scseg.inference.predict import find_cord, load_network

    bundle = load_bundle("cord-finder")
    network = load_network(bundle)
    for name in FINDER_IMAGES:
        image, grid = read_image(demo / f"{name}.nii.gz")
        stem = name.rpartition("_")[0]
        truth = values(demo / "derivatives" / "labels" / f"{stem}_label-SC_mask.nii.gz") > 0
        probability = find_cord(network, bundle, image=image, affine=grid.affine)
        cord = found_cord(probability, grid)
        dice = 2 * (cord & truth).sum() / (cord.sum() + truth.sum())
        apart = centre_distances(cord, truth, grid)
        print(f"{name}: Dice {dice:.3f}, centres {apart.mean():.2f} mm apart in {apart.size} slices")
        # Measured: Dice 0.820, 0.896 and 0.903; 0.48, 0.28 and 0.33 mm.
        assert dice >= 0.7, name
        assert apart.mean() <= 1.5, name


def centre_distances(one, two, grid):
    """(n,) mm between the centres of two masks, in each slice along S-I that has both."""
    along = grid.canonical_axes()[2][0]
    found = []
    for n in range(grid.shape[along]):
        index = [np.argwhere(np.take(mask, [n], axis=along)) for mask in (one, two)]
        if all(len(points) for points in index):
            centres = [grid.to_world(points.mean(axis=0)) for points in index]
            found.append(np.linalg.norm(centres[0] - centres[1]))
    return np.array(found)
