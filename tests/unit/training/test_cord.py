from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.space.grid import Grid
from bids_scseg.synth.tissues import Tissue
from bids_scseg.training.cord import (
    Mixture,
    RealCord,
    RealCords,
    TissueMaps,
    find_maps,
    load_real_cords,
    to_box,
)
from bids_scseg.training.sample import IGNORE

PATCH = (32, 32, 32)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("maps")
    tissue = np.full((60, 60, 80), Tissue.MUSCLE, np.uint8)
    tissue[22:38, 24:36] = Tissue.CSF
    tissue[25:35, 26:34] = Tissue.CORD_WHITE
    tissue[25:35, 26:34, 70:] = Tissue.BRAINSTEM
    np.save(folder / "tissue_000.npy", tissue, allow_pickle=False)
    return find_maps(folder)


def real_cord(subject: str = "sub-a") -> RealCord:
    cord = np.zeros((40, 44, 36), np.float32)
    cord[15:25, 18:26] = 1
    image = 100 * cord + np.random.default_rng(0).random(cord.shape, np.float32)
    return RealCord(name=f"{subject}_T2w", subject=subject, image=image, cord=cord)


def test_synthetic_examples(maps: tuple[Path, ...]) -> None:
    source = TissueMaps(files=maps, patch_vox=PATCH, seed=1)
    samples = [source.sample(n) for n in range(12)]
    assert np.array_equal(samples[5].image, source.sample(5).image)
    assert sum((item.label == 1).any() for item in samples) >= 8
    for item in samples:
        assert item.image.shape == (1, *PATCH)
        assert set(np.unique(item.label)) <= {0, 1, IGNORE}
        assert not item.image[~item.coverage].any()
        assert not item.label[~item.coverage[0]].any()
        assert np.isfinite(item.image).all()


def test_the_brainstem_does_not_count(maps: tuple[Path, ...]) -> None:
    source = TissueMaps(files=maps, patch_vox=PATCH, seed=1)
    assert any((source.sample(n).label == IGNORE).any() for n in range(40))


@pytest.mark.parametrize(("below", "shown"), [(Tissue.CSF, True), (Tissue.CORD_WHITE, False)])
def test_the_end_of_the_cord_is_shown_as_often_as_asked(tmp_path: Path, below: Tissue, shown: bool) -> None:
    tissue = np.full((60, 60, 200), Tissue.MUSCLE, np.uint8)
    tissue[22:38, 24:36] = Tissue.CSF
    tissue[25:35, 26:34, 60:] = Tissue.CORD_WHITE
    tissue[25:35, 26:34, :60] = below
    np.save(tmp_path / "tissue_000.npy", tissue, allow_pickle=False)
    shares = []
    for ends in (0.0, 1.0):
        source = TissueMaps(files=find_maps(tmp_path), patch_vox=PATCH, seed=1, ends=ends)
        labels = [source.sample(n).label == 1 for n in range(40)]
        # cord that starts inside the patch: none in the lowest slices, some above
        shares.append(np.mean([not label[:, :, :3].any() and label[:, :, -3:].any() for label in labels]))
    assert (shares[1] > shares[0] + 0.2) == shown


def test_real_examples_and_their_share(maps: tuple[Path, ...]) -> None:
    real = RealCords(cases=[real_cord(), real_cord("sub-b")], patch_vox=PATCH, seed=2)
    synthetic = TissueMaps(files=maps, patch_vox=PATCH, seed=3)
    for share, source in ((1.0, real), (0.0, synthetic)):
        mixed = Mixture(first=real, second=synthetic, share=share).sample(7)
        assert np.array_equal(mixed.image, source.sample(7).image)
    labels = [real.sample(n).label for n in range(12)]
    assert sum((label == 1).any() for label in labels) >= 8


def test_the_box_has_canonical_axes_and_millimetres() -> None:
    # stored posterior, superior, right with 2 x 1 x 3 mm voxels
    volume = np.zeros((10, 12, 5), np.float32)
    volume[2, 9, 1] = 1
    affine = np.array([[0, 0, 3.0, 0], [-2.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    box = to_box(volume, Grid(shape=volume.shape, affine=affine))
    assert np.allclose(box.shape, (15, 20, 12), atol=1)
    peak = np.unravel_index(box.argmax(), box.shape)
    # right: voxel 1 of 5 spans 3 to 6 mm; anterior: 2 from the front of 10, so 14 to 16 mm; superior: 9 mm
    assert abs(peak[0] - 4) <= 1
    assert abs(peak[1] - 14.5) <= 1.5
    assert abs(peak[2] - 9) <= 1


def write_pair(root: Path, *, shift: float = 0.0) -> None:
    data = np.zeros((8, 8, 8), np.float32)
    data[3:5, 3:5] = 1
    image = root / "sub-x" / "anat" / "sub-x_T2w.nii.gz"
    mask = root / "derivatives" / "labels" / "sub-x" / "anat" / "sub-x_T2w_label-SC_seg.nii.gz"
    for path, offset in ((image, 0.0), (mask, shift)):
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.eye(4)
        affine[0, 3] = offset
        nib.save(nib.Nifti1Image(data, affine), path)


def test_pairs_are_found_and_checked(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no cord masks"):
        load_real_cords(tmp_path)
    write_pair(tmp_path)
    (found,) = load_real_cords(tmp_path)
    assert (found.name, found.subject) == ("sub-x_T2w", "sub-x")
    assert found.cord.sum() == pytest.approx(32, rel=0.01)
    write_pair(tmp_path, shift=2.0)
    with pytest.raises(DataError, match="another lattice"):
        load_real_cords(tmp_path)


def test_no_maps(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="tissue maps"):
        find_maps(tmp_path)
