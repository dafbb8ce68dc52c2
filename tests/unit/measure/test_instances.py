"""Lesion numbering and its way back to native grids."""

from __future__ import annotations

import numpy as np
import pytest

from bids_scseg.errors import GeometryError
from bids_scseg.measure.instances import label_lesions, restore_labels, restore_labels_onto, seed_thresholds
from bids_scseg.space.grid import Grid

VOXEL = 0.125


def _label(probability, *, voxel_volume=VOXEL, **kwargs):
    return label_lesions(probability, threshold=0.5, voxel_volume=voxel_volume, **kwargs)


def _two_boxes():
    probability = np.zeros((20, 20, 40), np.float32)
    probability[2:4, 2:4, 2:6] = 0.9  # 16 voxels, low
    probability[10:14, 10:14, 30:34] = 0.5  # 64 voxels, high, exactly at the threshold
    return probability


def test_numbers_run_from_top_to_bottom_and_the_threshold_is_included():
    labels = _label(_two_boxes())
    assert labels.dtype == np.int32
    assert (labels[10:14, 10:14, 30:34] == 1).all()
    assert (labels[2:4, 2:4, 2:6] == 2).all()
    assert (labels > 0).sum() == 80


def test_small_components_are_dropped_and_numbers_stay_dense():
    probability = _two_boxes()
    probability[0, 19, 39] = 1  # one voxel at the very top
    labels = _label(probability, min_volume_mm3=2.0)  # 16 voxels are 2 mm³: kept
    assert set(np.unique(labels)) == {0, 1, 2}
    assert labels[0, 19, 39] == 0


def test_a_component_counts_only_if_it_reaches_the_seed_threshold_somewhere():
    probability = _two_boxes()
    probability[11, 11, 31] = 0.8  # the upper one's only sure voxel
    one = _label(probability, seed_threshold=0.9)
    assert one.max() == 1 and (one[2:4, 2:4, 2:6] == 1).all() and (one > 0).sum() == 16
    both = _label(
        probability, seed_threshold=0.8
    )  # itself included; outlines stay as wide as the threshold says
    assert (both > 0).sum() == 80 and both.max() == 2
    assert not _label(probability, seed_threshold=0.95).any()
    assert (
        _label(probability, seed_threshold=0.3) == _label(probability)
    ).all()  # below the threshold: no rule


def test_where_one_sequence_alone_sees_a_lesion_may_have_to_reach_more():
    probability = _two_boxes()
    probability[11, 11, 31] = 0.9
    coverage = np.zeros((2, 20, 20, 40), bool)
    coverage[0] = True
    coverage[1, :, :, :20] = True  # both see the lower box, which reaches 0.9 as well
    seeds = seed_thresholds(coverage, threshold=0.8, alone=0.95)
    assert isinstance(seeds, np.ndarray) and seeds.dtype == np.float32
    labels = _label(probability, seed_threshold=seeds)
    assert labels.max() == 1 and labels[3, 3, 3] == 1
    coverage[1, 11, 11, 31] = True  # one voxel is enough
    assert _label(probability, seed_threshold=seed_thresholds(coverage, threshold=0.8, alone=0.95)).max() == 2
    assert seed_thresholds(coverage, threshold=0.8, alone=0.0) == 0.8
    only = seed_thresholds(coverage[:1], threshold=0.0, alone=0.95)  # a rule for such places alone
    assert not _label(probability, seed_threshold=only).any()


def test_a_seed_beyond_the_cords_end_does_not_count():
    probability = np.zeros((10, 10, 20))
    probability[4:6, 4:6, 8:14] = 0.6
    probability[4:6, 4:6, 13] = 0.95  # beyond the end, which is cut off
    cord = np.zeros((10, 10, 20))
    cord[3:7, 3:7, :12] = 1
    assert _label(probability, cord=cord, seed_threshold=0.5).max() == 1
    assert not _label(probability, cord=cord, seed_threshold=0.9).any()


@pytest.mark.parametrize(("connectivity", "count"), [(6, 3), (18, 2), (26, 1)])
def test_connectivity(connectivity, count):
    probability = np.zeros((5, 5, 5))
    probability[1, 1, 1] = probability[2, 2, 1] = 1  # share an edge
    probability[3, 3, 2] = 1  # shares a corner with the second
    assert _label(probability, connectivity=connectivity).max() == count


def test_components_beside_the_cord_are_dropped_but_not_where_no_cord_is_known():
    probability = np.zeros((20, 20, 30))
    probability[1:3, 1:3, 5:8] = 1  # beside the cord
    probability[15:18, 15:18, 18:26] = 1  # beside its end and beyond
    probability[8:11, 8:11, 26:29] = 1  # beyond its end
    probability[8:10, 8:10, 17:24] = 1  # within and beyond: cut off at the end
    probability[1:3, 1:3, 13:15] = 1  # in a gap of the mask
    probability[7:10, 9, 10:12] = 1  # half in, half out: stays whole
    cord = np.zeros((20, 20, 30))
    cord[8:12, 8:12, :20] = 1
    cord[:, :, 12:16] = 0
    labels = _label(probability, cord=cord, voxel_volume=1.0)
    assert labels.max() == 3
    assert labels[1, 1, 6] == labels[9, 9, 27] == labels[16, 16, 22] == 0
    assert np.flatnonzero(labels[9, 9] == 1).tolist() == [17, 18, 19]
    assert labels[1, 1, 13] == 2
    assert (labels[7:10, 9, 10:12] == 3).all()
    assert _label(probability, cord=np.zeros_like(cord), voxel_volume=1.0).max() == 6


def test_no_lesion():
    labels = _label(np.zeros((4, 5, 6), np.float32))
    assert labels.shape == (4, 5, 6)
    assert labels.dtype == np.int32
    assert not labels.any()


def test_restored_volumes_are_unbiased_for_thin_lesions_in_thick_slices(make_geometry, offsets):
    """100 ellipsoids, half-axes 0.8-3 mm across and 2-8 mm along, in 3 mm slices of either orientation."""
    rng = np.random.default_rng(7)
    geometry = make_geometry(slices=200, slope=(0.1, -0.25))
    right, front, s = offsets(geometry)
    ratios, half = {0: [], 1: []}, {0: [], 1: []}
    for turn in range(50):
        labels = np.zeros(geometry.grid.shape, np.int32)
        for number, low in ((1, 55.0), (2, 20.0)):
            centre = rng.uniform([-4, -4, low], [4, 4, low + 25])
            axes = rng.uniform([0.8, 0.8, 2], [3, 3, 8])
            inside = (
                sum(((x - c) / a) ** 2 for x, c, a in zip((right, front, s), centre, axes, strict=True)) <= 1
            )
            labels[inside] = number
        for which, slab in enumerate(geometry.slabs):
            native = restore_labels(labels, geometry, slab)
            if turn < 4:
                fraction = geometry.restore((labels > 0).astype(np.float32), slab)
                truth = (labels > 0).sum() * VOXEL
                half[which].append((fraction >= 0.5).sum() * slab.grid.voxel_volume / truth)
            for number in (1, 2):
                truth = (labels == number).sum() * VOXEL
                ratios[which].append((native == number).sum() * slab.grid.voxel_volume / truth)
    for which in (0, 1):
        # docs/geometry.md and restore_labels state these figures
        assert np.mean(ratios[which]) == pytest.approx(1.000, abs=0.0005)
        assert np.round(min(ratios[which]), 3) >= 0.988
        assert np.round(max(ratios[which]), 3) <= 1.013
        assert np.mean(half[which]) < 0.97  # what the plain rule would lose


def test_a_thin_lesion_across_two_thick_slices_survives(make_geometry):
    geometry = make_geometry(slices=60)
    sag = geometry.slabs[0]
    labels = np.zeros(geometry.grid.shape, np.int32)
    # Slice borders of the sagittal slab lie at -34.3 - 1.5 + 3 n = 0.2 (n = 12): 1 mm on either side of 0 or
    # so.
    labels[23:25, 20:28, 20:40] = 1  # 1 mm thick: a third of one slice at most
    fraction = geometry.restore(labels.astype(np.float32), sag)
    assert not (fraction >= 0.5).any()
    native = restore_labels(labels, geometry, sag)
    truth = 2 * 8 * 20 * VOXEL
    assert (native == 1).sum() * sag.grid.voxel_volume == pytest.approx(truth, abs=sag.grid.voxel_volume)


def test_neighbours_do_not_share_voxels_and_keep_their_numbers(make_geometry):
    geometry = make_geometry(slices=60)
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[20:24, 20:28, 20:32] = 1
    labels[24:28, 20:28, 20:32] = 2
    labels[20:28, 20:28, 40:52] = 3
    for slab in geometry.slabs:
        native = restore_labels(labels, geometry, slab)
        assert native.dtype == np.uint16
        for number, voxels in ((1, 384), (2, 384), (3, 768)):
            assert (native == number).sum() == round(voxels * VOXEL / slab.grid.voxel_volume)
        again = restore_labels(labels, geometry, slab)
        assert (native == again).all()


def test_only_the_covered_part_is_restored(make_geometry):
    geometry = make_geometry(slices=60)
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[20:28, 20:28, 10:50] = 5
    # A lattice that begins at s = 15 mm: of the 20 mm (s from 4.75 to 24.75) it sees 9.75 mm.
    grid = Grid(
        shape=(60, 60, 10),
        affine=np.array([[0.5, 0, 0, -15], [0, 0.5, 0, -15], [0, 0, 3, 16.5], [0, 0, 0, 1.0]]),
    )
    native = restore_labels_onto(labels, geometry, key="T2Sag", grid=grid)
    assert set(np.unique(native)) == {0, 5}
    assert (native == 5).sum() * grid.voxel_volume == pytest.approx(4 * 4 * 9.75, abs=grid.voxel_volume)
    far = Grid(shape=(5, 5, 5), affine=np.array([[1, 0, 0, 500], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    assert not restore_labels_onto(labels, geometry, key="T2Sag", grid=far).any()


def test_a_speck_keeps_one_voxel(make_geometry):
    geometry = make_geometry(slices=60)
    labels = np.zeros(geometry.grid.shape, np.int32)
    labels[24, 24, 30] = 1  # a sixth of a native voxel
    assert (restore_labels(labels, geometry, geometry.slabs[0]) == 1).sum() == 1


def test_wrong_shape_is_refused(make_geometry):
    geometry = make_geometry(slices=20)
    with pytest.raises(GeometryError, match="shape"):
        restore_labels(np.zeros((3, 3, 3), np.int32), geometry, geometry.slabs[0])
    assert not restore_labels(np.zeros(geometry.grid.shape, np.int32), geometry, geometry.slabs[0]).any()
