"""Headers and images that are wrong must become one clear line; right ones must come through unchanged."""

from __future__ import annotations

import contextlib
import gzip
import re

import nibabel as nib
import numpy as np
import pytest
from bids_builders import write_nifti
from hypothesis import given
from hypothesis import strategies as st
from strategies import affines

from bids_scseg.errors import ImageError, MissingInputError
from bids_scseg.space.nifti import inspect_header, read_header, read_image


def patched(path, offset, values, dtype):
    """Overwrite header fields of an uncompressed or gzipped file."""
    packed = path.name.endswith(".gz")
    raw = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    block = np.asarray(values, dtype).tobytes()
    raw[offset : offset + len(block)] = block
    path.write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))
    return path


@given(affine=affines())
def test_lattice_is_the_one_that_nibabel_reads(tmp_path_factory, affine):
    path = write_nifti(tmp_path_factory.mktemp("h") / "a.nii", affine=affine)
    grid = read_header(path)
    assert grid.shape == (4, 5, 6)
    np.testing.assert_allclose(grid.affine, nib.load(path).affine, atol=1e-5)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_trailing_dimension_of_one_is_dropped(tmp_path, extension):
    path = write_nifti(tmp_path / f"a{extension}", (4, 5, 6, 1, 1))
    assert read_header(path).shape == (4, 5, 6)
    data, _ = read_image(path)
    assert data.shape == (4, 5, 6) and data.dtype == np.float32
    assert data[3, 4, 5] == 119


def test_nifti2_is_read(tmp_path):
    path = tmp_path / "a.nii.gz"
    img = nib.Nifti2Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4))
    nib.save(img, path)
    assert read_header(path).shape == (4, 5, 6)


def test_big_endian_file_is_read(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    img = nib.Nifti1Image(np.arange(120, dtype=">i2").reshape(4, 5, 6), np.eye(4), header)
    nib.save(img, tmp_path / "a.nii")
    data, _ = read_image(tmp_path / "a.nii")
    assert data[0, 0, 1] == 1


@pytest.mark.parametrize(
    ("shape", "words"),
    [((4, 5, 6, 3), "4 dimensions (4 x 5 x 6 x 3)"), ((4, 5, 1), "single slice"), ((4, 5), "single slice")],
)
def test_wrong_dimensions_are_refused(tmp_path, shape, words):
    path = write_nifti(tmp_path / "a.nii.gz", shape)
    with pytest.raises(ImageError, match=words.replace("(", r"\(").replace(")", r"\)")) as caught:
        read_header(path)
    assert str(path) in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "words"), [("T2starw", "Combine the echoes"), ("T2w", "average the volumes")]
)
def test_several_volumes_come_with_what_to_do(tmp_path, suffix, words):
    file = write_nifti(tmp_path / f"sub-01_{suffix}.nii.gz", (4, 5, 6, 3))
    with pytest.raises(ImageError, match=words):
        read_header(file)


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf, 4000.0])
def test_impossible_voxel_sizes_are_refused(tmp_path, size):
    path = patched(write_nifti(tmp_path / "a.nii"), 80, [size], "<f4")  # pixdim[1]
    with pytest.raises(ImageError, match="voxel sizes"):
        read_header(path)


def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path):
    path = patched(write_nifti(tmp_path / "a.nii.gz"), 42, [30000, 30000, 30000], "<i2")  # dim[1:4]
    with pytest.raises(ImageError, match="GB in memory"):
        read_header(path)


@pytest.mark.parametrize("cut", [4, 30, 200])
def test_cut_gzip_is_refused_by_its_header_alone(tmp_path, cut):
    noise = np.random.default_rng(0).integers(0, 1000, (8, 8, 8)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", data=noise)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ImageError, match="truncated") if cut > 8 else pytest.raises(ImageError):
        read_image(path)


def test_a_cut_gzip_is_told_with_the_length_that_it_has(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (32, 32, 32)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", data=noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="truncated") as caught:
        read_header(path)
    found = int(re.findall(r"truncated: (\d+) bytes", str(caught.value))[0])
    whole = 352 + 32**3 * 2
    assert 0.3 * whole < found < 0.7 * whole


def test_gzip_that_lies_about_its_content_is_refused(tmp_path):
    path = write_nifti(tmp_path / "a.nii")
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()[:-20]))  # a sound gzip of a cut file
    with pytest.raises(
        ImageError, match=r"truncated: 572 bytes .* expected 592 bytes"
    ):  # 352 + 120 * 2 = 592
        read_header(packed)


def test_gzip_in_several_members_is_fine(tmp_path):
    raw = write_nifti(tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
    assert read_header(path).shape == (4, 5, 6)


def test_cut_plain_file_is_refused(tmp_path):
    path = write_nifti(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError, match="truncated"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello", "not gzip"),
        (gzip.compress(b"hello"), "not a NIfTI"),
        (b"\x1f\x8bxx", "read"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=words):
        read_header(path)


def test_absent_file_and_dangling_link(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        read_header(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match="link whose target is absent"):
        read_header(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_types_that_are_no_intensities_are_refused(tmp_path, dtype):
    path = write_nifti(tmp_path / "a.nii.gz", data=np.zeros((4, 5, 6), dtype))
    with pytest.raises(ImageError, match="data type"):
        read_header(path)


def test_unknown_orientation_is_refused(tmp_path):
    path = patched(write_nifti(tmp_path / "a.nii"), 252, [0, 0], "<i2")  # qform_code, sform_code
    with pytest.raises(ImageError, match="no orientation"):
        read_header(path)


def moved(shift, degrees=0.0):
    angle = np.deg2rad(degrees)
    matrix = np.diag([1.0, 1.0, 3.0, 1.0])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = turn @ matrix
    matrix[0, 3] = shift
    return matrix


def with_forms(path, sform, qform):
    img = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), sform)
    img.set_sform(sform, code=1)
    img.set_qform(qform, code=1)
    nib.save(img, path)
    return path


def test_sform_counts_and_a_small_disagreement_is_a_warning(tmp_path):
    path = with_forms(tmp_path / "a.nii.gz", moved(3.0), moved(0.0))
    header = inspect_header(path)
    assert header.grid.affine[0, 3] == 3.0
    assert "differ by up to 3.0 mm and 0.0 degrees; the sform is used" in header.warnings[0]


def test_agreement_to_rounding_is_silent(tmp_path):
    assert inspect_header(with_forms(tmp_path / "a.nii.gz", moved(0.01), moved(0.0))).warnings == ()


@pytest.mark.parametrize("sform", [moved(40.0), moved(0.0, 25.0), moved(0.0) @ np.diag([-1.0, 1, 1, 1])])
def test_a_large_disagreement_is_refused(tmp_path, sform):
    with pytest.raises(ImageError, match="sform and qform differ"):
        read_header(with_forms(tmp_path / "a.nii.gz", sform, moved(0.0)))


PIXDIM_0, QUATERN_B, QOFFSET_X = 76, 256, 268  # bytes


@pytest.mark.parametrize("sform_code", [0, 1])
def test_a_zero_for_the_side_of_the_third_axis_counts_as_one(tmp_path, sform_code):
    """As NIfTI-1 has it; -1 would turn the slices round."""
    path = patched(with_forms(tmp_path / "a.nii.gz", moved(2.0), moved(2.0)), PIXDIM_0, [0.0], "<f4")
    header = inspect_header(patched(path, 254, [sform_code], "<i2"))
    assert header.warnings == ()
    np.testing.assert_allclose(header.grid.affine, moved(2.0), atol=1e-5)
    np.testing.assert_allclose(read_image(path)[1].affine, moved(2.0), atol=1e-5)


@pytest.mark.parametrize(
    ("offset", "values", "words"),
    [
        (QUATERN_B, [1.000002, 0.0, 0.0], "unusable orientation by the qform (w2 should be positive"),
        (PIXDIM_0, [2.0], "unusable orientation by the qform (qfac"),
        (QOFFSET_X, [np.nan], "qform gives voxel sizes"),
    ],
)
def test_an_odd_qform_beside_a_sound_sform_is_a_warning(tmp_path, offset, values, words):
    path = patched(with_forms(tmp_path / "a.nii", moved(3.0), moved(3.0)), offset, values, "<f4")
    (warning,) = inspect_header(path).warnings
    assert warning.startswith(words) and warning.endswith("the sform is used")
    np.testing.assert_allclose(read_image(path)[1].affine, moved(3.0), atol=1e-6)
    with pytest.raises(ImageError, match="qform"):  # where it is all there is
        read_header(patched(path, 254, [0], "<i2"))


def test_an_odd_sform_is_refused_whatever_the_qform_says(tmp_path):
    """Every other program would take the sform."""
    path = patched(with_forms(tmp_path / "a.nii", moved(3.0), moved(3.0)), 280, [np.nan], "<f4")
    with pytest.raises(ImageError, match="sform gives"):
        read_header(path)


@pytest.mark.parametrize(("kind", "first"), [(nib.Nifti1Image, 352), (nib.Nifti2Image, 544)])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_voxels_that_start_within_the_header_are_refused(tmp_path, kind, first, extension):
    path = tmp_path / f"a{extension}"
    nib.save(kind(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4)), path)
    where, dtype = (108, "<f4") if first == 352 else (168, "<i8")
    for start in (0, first - 1):
        with pytest.raises(ImageError, match=f"byte {start}, within the header; expected {first} to"):
            read_header(patched(path, where, [start], dtype))
    assert read_header(patched(path, where, [first], dtype)).shape == (4, 5, 6)


def test_sheared_lattice_is_refused(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    with pytest.raises(ImageError, match="from perpendicular"):
        read_header(write_nifti(tmp_path / "a.nii.gz", affine=affine, qform=False))


def test_few_bad_voxels_are_replaced_and_logged(tmp_path, caplog):
    data = np.arange(2, 1002, dtype=np.float32).reshape(10, 10, 10)
    data[0, 0, 1], data[5, 5, 5] = np.nan, np.inf
    loaded, _ = read_image(write_nifti(tmp_path / "a.nii.gz", data=data))
    assert loaded[0, 0, 1] == loaded[5, 5, 5] == 2.0
    assert "2 voxels are NaN or infinite" in caplog.text


def test_many_bad_voxels_are_refused(tmp_path):
    data = np.full((10, 10, 10), np.nan, np.float32)
    data[0] = 1
    with pytest.raises(ImageError, match="900 of 1000 voxels are NaN"):
        read_image(write_nifti(tmp_path / "a.nii.gz", data=data))


def test_constant_image_is_refused(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", data=np.full((4, 5, 6), 7, np.int16))
    with pytest.raises(ImageError, match="every voxel has the value 7"):
        read_image(path)


def test_scaled_integers_are_read_as_intensities(tmp_path):
    img = nib.Nifti1Image(np.linspace(0, 1, 120, dtype=np.float32).reshape(4, 5, 6), np.eye(4))
    img.set_data_dtype(np.int16)
    nib.save(img, tmp_path / "a.nii.gz")
    assert read_image(tmp_path / "a.nii.gz")[0].max() == pytest.approx(1.0, abs=1e-4)


@given(junk=st.binary(min_size=0, max_size=700))
def test_any_bytes_give_an_image_error_and_nothing_else(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("junk") / "a.nii"
    path.write_bytes(junk)
    with pytest.raises(ImageError):
        read_header(path)


@given(junk=st.binary(min_size=348, max_size=348))
def test_any_header_with_the_right_magic_gives_a_grid_or_an_image_error(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("junk") / "a.nii"
    path.write_bytes(junk[:344] + b"n+1\x00" + bytes(1000))
    with contextlib.suppress(ImageError):
        assert np.isfinite(read_header(path).affine).all()


def test_real_headers_are_read_without_a_warning(real_dev):
    files = sorted(real_dev.glob("sub-*/**/*.nii.gz"))
    assert files and all(inspect_header(file).warnings == () for file in files)
