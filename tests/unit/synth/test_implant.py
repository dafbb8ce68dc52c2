"""Lesions painted into images whose cord is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bids_scseg.space.grid import Grid
from bids_scseg.synth.blobs import blob_fraction, draw_blob
from bids_scseg.synth.contrast import SEQUENCES
from bids_scseg.synth.cords import CordImage, measure_cord
from bids_scseg.synth.implant import Implant, draw_waves, paint_implants, shares
from bids_scseg.synth.lesions import Lesion, draw_lesion_at, volume_mm3
from bids_scseg.synth.subject import cord_area_mm2

NO_WAVES = np.zeros((0, 4))
HALF_RL, HALF_AP = 6.5, 4.0


def tube(
    *, spacing=(0.5, 0.5, 3.0), shape=(60, 60, 24), shift=(0.0, 0.0), sequence="T2StarAx", lean=0.1, seed=0
):
    """A bright-in-the-middle image of an elliptic cord that leans forwards, and its mask."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-shape[0] * spacing[0] / 2, -shape[1] * spacing[1] / 2, -40.0]
    grid = Grid(shape=shape, affine=affine)
    x, y, z = np.moveaxis(grid.to_world(np.stack(np.indices(shape), axis=-1)), -1, 0)
    u, v = x - shift[0], y - shift[1] - lean * z
    cord = (u / HALF_RL) ** 2 + (v / HALF_AP) ** 2 <= 1
    rng = np.random.default_rng(seed)
    data = np.where(cord, 100.0, 200.0) + rng.normal(0, 4, shape)
    return CordImage(
        name=f"{sequence}-{seed}.nii.gz", sequence=sequence, data=data.astype(np.float32), grid=grid,
        cord=cord.astype(np.float32), thickness_mm=np.array(spacing),
    )  # fmt: skip


def lesion_of(cord, *, cnr=4.0, seed=3, z=-35.0, grey=True):
    lesion = draw_lesion_at(np.random.default_rng(seed), cord.anatomy, z_mm=z)
    return replace(lesion, grey=grey, cnr=dict.fromkeys(SEQUENCES, cnr))


@pytest.fixture(scope="module")
def session():
    image = tube()
    return image, measure_cord([image], image.name)


def test_course_and_size_of_a_known_cord(session):
    _, cord = session
    # 24 slices of 3 mm, and a lean of 0.1: 72 mm x sqrt(1.01) of arc, 72.4; each end may gain half a node
    # (0.5 mm) and a step of the tables (0.5 mm)
    assert cord.covered_mm == pytest.approx(72.4, abs=2.0)
    area = np.pi * HALF_RL * HALF_AP / np.sqrt(1.01)
    assert cord_area_mm2(cord.anatomy, -36.0)[0] == pytest.approx(area, rel=0.04)


@given(seed=st.integers(0, 50), cnr=st.floats(0, 8), sequence=st.sampled_from(["T2Sag", "T1Sag", "MP2RAGE"]))
@settings(max_examples=5, deadline=None)
@example(seed=1, cnr=0.0, sequence="T1Sag")
def test_nothing_outside_the_cord_changes_and_the_sign_is_right(seed, cnr, sequence):
    image = tube(sequence=sequence, shape=(60, 60, 14))
    cord = measure_cord([image], image.name)
    lesion = lesion_of(cord, cnr=cnr, seed=seed, z=-20.0)
    painted = paint_implants(
        image, cord.anatomy, [Implant(lesion=lesion, waves=draw_waves(np.random.default_rng(seed)))]
    )
    change = painted.data - image.data
    outside = image.cord == 0
    assert np.array_equal(painted.data[outside], image.data[outside])
    if sequence == "T2Sag":
        assert change.min() >= 0
    else:
        assert change.max() <= 0
    assert not painted.lesions[outside].any()


@pytest.mark.parametrize("cnr", [1.2, 3.0, 5.0])
def test_contrast_to_noise_is_the_one_asked_for(session, cnr):
    image, cord = session
    painted = paint_implants(image, cord.anatomy, [Implant(lesion=lesion_of(cord, cnr=cnr), waves=NO_WAVES)])
    assert painted.cnr[0] == pytest.approx(cnr, rel=0.05)


def test_an_even_lesion_fills_voxels_by_its_volume(session):
    """Means over footprints lose nothing: their integral is the lesion's volume, at any voxel size."""
    image, cord = session
    lesion = lesion_of(cord)
    # the summation over discs takes the elliptic cord, the mask is that ellipse in voxels of 0.5 x 0.5 x 3 mm
    wanted = volume_mm3(cord.anatomy, lesion)
    thick = shares(image, cord.anatomy, [Implant(lesion=lesion, waves=NO_WAVES)])
    fine_image = tube(spacing=(0.5, 0.5, 0.5), shape=(60, 60, 144))
    fine = shares(fine_image, cord.anatomy, [Implant(lesion=lesion, waves=NO_WAVES)])
    assert thick.lesions.sum() * image.grid.voxel_volume == pytest.approx(wanted, rel=0.06)
    assert fine.lesions.sum() * fine_image.grid.voxel_volume == pytest.approx(wanted, rel=0.06)


def test_what_is_added_is_the_footprint_mean_times_the_amplitude(session):
    image, cord = session
    lesion = lesion_of(cord)
    implants = [Implant(lesion=lesion, waves=NO_WAVES)]
    painted = paint_implants(image, cord.anatomy, implants)
    where = shares(image, cord.anatomy, implants)
    added = float((painted.data - image.data).sum(dtype=float))
    # the cord's level is 100 everywhere; the point spread takes a little across the mask's edge
    assert added == pytest.approx(painted.amplitude[0] * 100.0 * where.lesions[0].sum(), rel=0.08)


def test_a_slice_half_filled_along_its_thickness_holds_half():
    """The lesion's end lies in the middle of a thick slice: partial volume through the slice."""
    image = tube(spacing=(0.5, 0.5, 8.0), shape=(60, 60, 9), lean=0.0)
    cord = measure_cord([image], image.name)
    blob = draw_blob(np.random.default_rng(1), cord.anatomy, z_mm=-36.0)
    # a lesion over the whole section, without roughness, from one slice's middle to another's
    blob = replace(
        blob, length_mm=16.0, radii_mm=(40.0, 40.0), centre=(0.0, 0.0), edge_mm=0.05,
        waves=np.array([[0, 0, 0, np.pi / 2]]), arc_mm=float(cord.anatomy.profiles.arc[868]),
    )  # fmt: skip
    part = shares(image, cord.anatomy, [Implant(lesion=blob, waves=NO_WAVES)])
    ends = cord.anatomy.profiles.arc[868] + np.array([-8.0, 8.0])
    centre = np.abs(part.radius) < 0.4
    for end in ends:
        near = centre & (np.abs(part.arc - end) < 4.0)
        share = float(part.lesions[0, near].mean())
        offset = float(part.arc[near].mean() - end) * np.sign(end - cord.anatomy.profiles.arc[868])
        assert share == pytest.approx(0.5 - offset / 8.0, abs=0.06)


def test_lesions_of_a_session_lie_at_the_same_place_of_the_cord_in_every_image():
    first = tube(sequence="T2Sag", spacing=(1.0, 1.0, 1.0), shape=(40, 40, 70), seed=1)
    second = tube(sequence="T1Sag", spacing=(0.7, 0.7, 2.5), shape=(60, 60, 28), shift=(2.0, -1.5), seed=2)
    cord = measure_cord([first, second], first.name)
    lesion = lesion_of(cord, z=-30.0)
    centres = []
    for image, shift in ((first, np.zeros(3)), (second, np.array([2.0, -1.5, 0.0]))):
        implants = [Implant(lesion=lesion, waves=NO_WAVES)]
        part = shares(image, cord.anatomies[image.name], implants)
        ijk = np.stack(np.unravel_index(part.near, image.grid.shape), axis=1)
        weight = part.lesions[0][:, None]
        centres.append((image.grid.to_world(ijk) * weight).sum(axis=0) / weight.sum() - shift)
    assert np.abs(centres[0] - centres[1]).max() < 0.5
    bright = paint_implants(first, cord.anatomies[first.name], [Implant(lesion=lesion, waves=NO_WAVES)])
    dark = paint_implants(second, cord.anatomies[second.name], [Implant(lesion=lesion, waves=NO_WAVES)])
    assert bright.amplitude[0] > 0 > dark.amplitude[0]
    assert np.all([bright.cnr[0] > 2, dark.cnr[0] > 2])


def test_a_bright_lesion_stays_below_the_fluid_beside_it(session):
    image, cord = session
    painted = paint_implants(image, cord.anatomy, [Implant(lesion=lesion_of(cord, cnr=60.0), waves=NO_WAVES)])
    # fluid 200 over cord 100: at most 0.8 of the way, i.e. + 80 %
    assert painted.amplitude[0] == pytest.approx(0.8, abs=0.05)
    assert painted.cnr[0] < 30


def test_without_implants_the_image_comes_back_bit_for_bit(session):
    image, cord = session
    painted = paint_implants(image, cord.anatomy, [])
    assert np.array_equal(painted.data, image.data)
    assert painted.cnr.shape == (0,)


def test_a_lesion_out_of_view_is_not_covered(session):
    image, cord = session
    lesion = replace(lesion_of(cord), arc_mm=300.0)
    painted = paint_implants(image, cord.anatomy, [Implant(lesion=lesion, waves=NO_WAVES)])
    assert np.isnan(painted.cnr[0])
    assert painted.volume_mm3[0] == 0
    assert np.array_equal(painted.data, image.data)


def test_multiplicative_lesions_scale_the_noise_with_the_signal(session):
    image, cord = session
    lesion = lesion_of(cord, cnr=5.0)
    inside = {}
    for multiplicative in (False, True):
        implant = Implant(lesion=lesion, waves=NO_WAVES, multiplicative=multiplicative)
        painted = paint_implants(image, cord.anatomy, [implant])
        full = shares(image, cord.anatomy, [implant])
        core = full.near[full.weights[0] > 0.97]
        inside[multiplicative] = painted.data.reshape(-1)[core] / image.data.reshape(-1)[core]
    assert inside[True].std() < 0.3 * inside[False].std()


def test_blobs_have_the_sizes_of_the_literature():
    image = tube(spacing=(1.0, 1.0, 1.0), shape=(40, 40, 90))
    cord = measure_cord([image], image.name)
    rng = np.random.default_rng(5)
    blobs = [draw_blob(rng, cord.anatomy, z_mm=-60.0) for _ in range(90)]
    lateral = [blob for blob in blobs if blob.column.startswith("lateral")]
    assert len(lateral) / 90 == pytest.approx(0.59, abs=0.16)
    # gamma means 8.5 mm2 and 17.6 mm; three standard errors of 50 lesions are 19 and 17 %
    assert np.mean([blob.area_mm2 for blob in lateral]) == pytest.approx(8.5, rel=0.19)
    assert np.mean([blob.length_mm for blob in lateral]) == pytest.approx(17.6, rel=0.17)
    sides = {np.sign(blob.centre[0]) for blob in lateral if blob.column == "lateral right"}
    assert sides == {1.0}


def test_a_blob_ends_where_its_length_says_and_at_the_cord():
    image = tube()
    cord = measure_cord([image], image.name)
    blob = draw_blob(np.random.default_rng(0), cord.anatomy, z_mm=-36.0)
    u, v = blob.centre[0] * HALF_RL, blob.centre[1] * HALF_AP
    axes = (np.full(3, HALF_RL), np.full(3, HALF_AP))

    def at(arc, u, v):
        share = blob_fraction(blob, arc=np.full(3, arc), u=np.full(3, u), v=np.full(3, v), half_axes=axes)
        return float(share[0])

    assert at(0.0, u, v) > 0.5
    assert at(0.9 * blob.length_mm, u, v) < 0.1
    assert at(0.0, 1.05 * HALF_RL, 0.0) == 0
    assert isinstance(lesion_of(cord), Lesion)
