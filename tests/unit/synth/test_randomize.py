"""Random contrasts and stored tissue maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation

from bids_scseg.synth.anatomy import CORD_TISSUES, Tissue
from bids_scseg.synth.randomize import _draw_means, _draw_subject, random_contrast, write_tissue_maps


def test_maps_hold_a_cord_and_repeat(tmp_path: Path) -> None:
    first = write_tissue_maps(tmp_path / "a", count=2, seed=5, spacing_mm=4.0)
    again = write_tissue_maps(tmp_path / "b", count=1, seed=5, spacing_mm=4.0)
    assert [path.name for path in first] == ["tissue_000.npy", "tissue_001.npy"]
    maps = [np.load(path, allow_pickle=False) for path in first]
    assert all(each.shape == (50, 50, 65) and each.dtype == np.uint8 for each in maps)
    assert all(np.isin(each, CORD_TISSUES).sum() > 40 for each in maps)
    assert not np.array_equal(*maps)
    assert first[0].read_bytes() == again[0].read_bytes()


def test_maps_show_where_the_cord_ends_and_thin_cords(tmp_path: Path) -> None:
    paths = write_tissue_maps(tmp_path, count=40, seed=1, spacing_mm=5.0)
    maps = [np.load(path, allow_pickle=False) for path in paths]
    ends = 0
    for each in maps:
        lowest = np.flatnonzero(np.isin(each, CORD_TISSUES).any((0, 1)))[0]
        below = each[:, :, : max(lowest - 1, 0)]
        # Roots in fluid, no cord: of those that leave the canal at every level up to three voxels touch some.
        roots = (below == Tissue.ROOT) & binary_dilation(below == Tissue.CSF)
        ends += lowest >= 5 and roots.sum() > 3  # five slices are 25 mm
    assert 10 <= ends <= 28
    sizes = [_draw_subject(np.random.default_rng(n)).profiles.cord_ap.min() for n in range(60)]
    assert min(sizes) < 0.75 * max(sizes)


def test_contrast_is_an_image_and_repeats() -> None:
    tissue = np.zeros((24, 20, 16), np.uint8)
    tissue[6:18, 5:15] = Tissue.CSF
    tissue[9:15, 7:13] = Tissue.CORD_WHITE
    images = [random_contrast(tissue, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert images[0].shape == tissue.shape
    assert images[0].dtype == np.float32
    assert np.isfinite(images[0]).all()
    assert images[0].min() >= 0
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_one_slice_and_all_air_work() -> None:
    for seed in range(6):
        image = random_contrast(np.zeros((1, 9, 8), np.uint8), np.random.default_rng(seed))
        assert np.isfinite(image).all()


def test_cord_and_fluid_differ_nearly_always_and_in_both_directions() -> None:
    rng = np.random.default_rng(0)
    means = np.array([_draw_means(rng)[0] for _ in range(400)])
    gap = means[:, Tissue.CSF] - means[:, Tissue.CORD_WHITE]
    assert np.mean(np.abs(gap) > 0.1) > 0.9
    assert 0.2 < np.mean(gap > 0) < 0.8
    assert means[:, Tissue.AIR].max() < 0.1
