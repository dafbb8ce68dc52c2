"""Images: partial volumes, contrast-to-noise, truth masks, and what a scan does to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_scseg.synth.anatomy import Anatomy, Tissue, centerline_world, cord_area_mm2
from bids_scseg.synth.contrast import LESION_SIGN, TEMPLATES, draw_intensities
from bids_scseg.synth.lesions import Lesion, draw_lesions, volume_mm3
from bids_scseg.synth.protocol import Plane, lattice
from bids_scseg.synth.scanner import Acquisition, Exposure, develop, expose


def _acquisition(
    anatomy: Anatomy, sequence: str, *, codes: str = "PSR", height: float = -45.0
) -> Acquisition:
    plane = Plane(
        codes=codes, voxel_mm=(3.0, 0.8, 0.8), fov_mm=(30, 50, 90), slices_along=0, thickness_mm=3.0
    )
    shape, affine = lattice(plane, centre=centerline_world(anatomy, height)[0], turn=np.zeros(3))
    return Acquisition(
        sequence=sequence, shape=shape, affine=affine, slice_axis=codes.index("R"), thickness_mm=3.0,
        motion=np.eye(4), snr=20.0, coil_mm=90.0, flow=0.3, ghost=0.2, phase_axis=codes.index("S"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def lesions(subject: Anatomy) -> tuple[Lesion, ...]:
    return draw_lesions(np.random.default_rng(8), subject, 2, first_z_mm=-45.0)


@pytest.fixture(scope="module")
def exposure(subject: Anatomy, lesions: tuple[Lesion, ...]) -> Exposure:
    means = draw_intensities(np.random.default_rng(0), "T2Sag")
    return expose(subject, _acquisition(subject, "T2Sag"), intensities=means, lesions=lesions)


def test_cord_volume_survives_thick_slices(subject: Anatomy, exposure: Exposure) -> None:
    acquisition = _acquisition(subject, "T2Sag")
    volume = exposure.cord.sum() * abs(np.linalg.det(acquisition.affine[:3, :3]))
    corner = acquisition.affine @ np.array([0, 0, 0, 1.0])
    heights = np.arange(corner[2] - subject.offset[2], corner[2] - subject.offset[2] + 90, 1.0)
    line = centerline_world(subject, heights)
    length = np.linalg.norm(np.diff(line, axis=0), axis=1)
    expected = (cord_area_mm2(subject, heights[1:]) * length).sum()
    assert volume == pytest.approx(expected, rel=0.04)


def test_lesion_volume_survives_thick_slices(
    subject: Anatomy, lesions: tuple[Lesion, ...], exposure: Exposure
) -> None:
    number = next(n for n, lesion in enumerate(lesions) if lesion.z_mm == -45.0)
    voxel = abs(np.linalg.det(_acquisition(subject, "T2Sag").affine[:3, :3]))
    measured = exposure.lesions[number].sum() * voxel
    assert measured == pytest.approx(volume_mm3(subject, lesions[number]), rel=0.08)


@pytest.mark.parametrize("sequence", ["T2Sag", "T1Sag"])
@pytest.mark.parametrize("wanted", [1.2, 3.0, 5.0])
def test_realised_contrast_to_noise(
    subject: Anatomy, lesions: tuple[Lesion, ...], sequence: str, wanted: float
) -> None:
    rng, acquisition = np.random.default_rng(1), _acquisition(subject, sequence)
    exposure = expose(subject, acquisition, intensities=draw_intensities(rng, sequence), lesions=lesions)
    image = develop(exposure, acquisition, rng, sign=LESION_SIGN[sequence], cnr=[wanted] * 2)
    # of the lesion at the centre of the view; the measured ratio has the noise of both means in it
    number = next(n for n, lesion in enumerate(lesions) if lesion.z_mm == -45.0)
    assert image.cnr[number] == pytest.approx(wanted, rel=0.15, abs=0.3)


def test_contrast_is_what_the_definition_says(subject: Anatomy, exposure: Exposure) -> None:
    # CNR by hand: (mean of lesion voxels - mean of pure cord within 10 mm) / sd of the latter
    image = develop(
        exposure, _acquisition(subject, "T2Sag"), np.random.default_rng(1), sign=1, cnr=[4.0, 4.0]
    )
    number = int(np.nanargmax(np.isfinite(image.cnr))) + 1
    inside = (image.lesions == number) & (exposure.cord > 0.9)
    assert inside.sum() >= 3
    arc = np.full(image.data.shape, np.nan, np.float32)
    arc.reshape(-1)[exposure.near] = exposure.arc
    near = (arc > arc[inside].min() - 10) & (arc < arc[inside].max() + 10)
    around = near & (exposure.cord > 0.9) & (image.lesion_share < 0.03)
    value = (image.data[inside].mean() - image.data[around].mean()) / image.data[around].std()
    assert image.cnr[number - 1] == pytest.approx(value, abs=0.03)


def test_masks_and_shares_agree(subject: Anatomy, exposure: Exposure) -> None:
    image = develop(
        exposure, _acquisition(subject, "T2Sag"), np.random.default_rng(1), sign=1, cnr=[3.0, 3.0]
    )
    assert image.data.dtype == np.int16
    assert not (image.lesions[~image.cord] > 0).any()
    np.testing.assert_array_equal(image.lesions > 0, exposure.lesions.max(0).__ge__(0.5)[_index(exposure)])


def _index(exposure: Exposure) -> np.ndarray:
    """Position in ``near`` of each voxel, pointing at an empty one where it is not near."""
    out = np.full(exposure.cord.size, int(np.argmin(exposure.lesions.max(0))))
    out[exposure.near] = np.arange(exposure.near.size)
    return out.reshape(exposure.cord.shape)


def test_orientation_of_the_lattice_does_not_matter(subject: Anatomy, exposure: Exposure) -> None:
    other = _acquisition(subject, "T2Sag", codes="RSP")
    means = draw_intensities(np.random.default_rng(0), "T2Sag")
    turned = expose(subject, other, intensities=means)
    np.testing.assert_allclose(np.swapaxes(turned.cord, 0, 2), exposure.cord, atol=0.15)
    assert np.abs(np.swapaxes(turned.cord, 0, 2) - exposure.cord).mean() < 1e-3


def test_motion_moves_the_subject(subject: Anatomy, exposure: Exposure) -> None:
    motion = np.eye(4)
    motion[1, 3] = 1.6  # two voxels towards the front: axis 0 points backwards, so the cord moves to higher i
    moved = replace(_acquisition(subject, "T2Sag"), motion=motion)
    shifted = expose(subject, moved, intensities=draw_intensities(np.random.default_rng(0), "T2Sag"))
    np.testing.assert_allclose(shifted.cord[2:], exposure.cord[:-2], atol=0.15)


def test_no_cord_in_view_gives_an_image_without_truth(subject: Anatomy) -> None:
    acquisition = _acquisition(subject, "T2Sag")
    away = replace(acquisition, affine=acquisition.affine + np.eye(4)[:, [3]] * 0 + _shift(150.0))
    seen = expose(subject, away, intensities=draw_intensities(np.random.default_rng(0), "T2Sag"))
    image = develop(seen, away, np.random.default_rng(0), sign=1)
    assert not image.cord.any()
    assert image.cnr.size == 0
    assert np.isfinite(image.data).all()


def _shift(x_mm: float) -> np.ndarray:
    out = np.zeros((4, 4))
    out[0, 3] = x_mm
    return out


def test_templates_rank_tissues_as_the_sequences_do() -> None:
    def order(sequence: str, *names: Tissue) -> bool:
        values = [TEMPLATES[sequence][name] for name in names]
        return values == sorted(values, reverse=True)

    assert order("T2Sag", Tissue.CSF, Tissue.FAT, Tissue.CORD_GREY, Tissue.CORD_WHITE, Tissue.CORTEX)
    assert order("STIR", Tissue.CSF, Tissue.CORD_WHITE, Tissue.FAT)
    assert order("T1Sag", Tissue.FAT, Tissue.CORD_WHITE, Tissue.CORD_GREY, Tissue.CSF)
    assert order("MP2RAGE", Tissue.CORD_WHITE, Tissue.CORD_GREY, Tissue.CSF)
    assert [LESION_SIGN[name] for name in ("T2Sag", "STIR", "T1Sag", "MP2RAGE", "PSIR")] == [1, 1, -1, -1, -1]
