"""Random damage to headers, sidecars, filters, recipes, bundles and options: understood, or an error of ours.

Hypothesis changes the files of ``corpus/`` in a few places and asks the reader for its verdict. A file that
once broke a reader belongs into the corpus: every file there is tried as it is as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_scseg.bids.filters import read_filters
from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.query import find_studies
from bids_scseg.errors import DataError, ImageError, MissingInputError, ScsegError
from bids_scseg.inference.bundle import load_bundle, load_weights, sha256
from bids_scseg.options import RunOptions, read_config
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.nifti import inspect_header, read_image

CORPUS = Path(__file__).parent / "corpus"
LESION = load_recipe("cord-lesion")
EXAMPLES = settings(max_examples=60)

Read = Callable[[Path, bytes], str]
UNDERSTOOD, REFUSED = "understood", "refused"


def seeds(kind: str) -> list[Path]:
    return sorted((CORPUS / kind).iterdir())


@st.composite
def damaged(draw, kind: str) -> tuple[str, bytes]:
    """A file of the corpus with up to six changes: bytes overwritten, put in, taken out, or cut off."""
    file = draw(st.sampled_from(seeds(kind)))
    data = bytearray(file.read_bytes())
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, min(len(data), 600))))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(PIECES)))
        match draw(st.sampled_from(("over", "in", "out", "cut"))):
            case "over":
                data[at : at + len(piece)] = piece
            case "in":
                data[at:at] = piece
            case "out":
                del data[at : at + len(piece)]
            case "cut":
                del data[at:]
    return file.suffix, bytes(data)


PIECES = (
    *(b"\x00" * 4, b"\xff" * 8, b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\x7f", b"\x00\x80"),
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"true", b"-1", b"1e999", b"NaN", b"0.5", b"="),
    *(
        b"99999999999999999999",
        b'{"a": []}',
        b"[[[]]]",
        b'""',
        b"\n",
        b"\xef\xbb\xbf",
        b"../../x",
        b"\\ud800",
    ),
)


def header(folder: Path, data: bytes) -> str:
    path = folder / "a.nii"
    path.write_bytes(data)
    try:
        found = inspect_header(path)
        image, grid = read_image(path)
    except (ImageError, MissingInputError) as error:
        assert str(path) in str(error)
        return REFUSED
    assert image.shape == grid.shape == found.grid.shape
    assert np.isfinite(image).all() and np.isfinite(grid.affine).all()
    return UNDERSTOOD


def sidecar(folder: Path, data: bytes) -> str:
    anat = folder / "sub-01" / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text('{"BIDSVersion": "1.10.0"}')
    shutil.copy(CORPUS / "header" / "nifti1.nii", anat / "sub-01_acq-sag_T2w.nii")
    (anat / "sub-01_acq-sag_T2w.json").write_bytes(data)
    (study,) = find_studies(folder, validate_names=False)
    plan = make_plan(study, LESION)
    assert len(study.images) == 1
    assert plan.anchor or plan.left_out
    return UNDERSTOOD


def filters(folder: Path, data: bytes) -> str:
    path = folder / "filter.json"
    path.write_bytes(data)
    try:
        found = read_filters(path, LESION)
    except DataError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
        return REFUSED
    assert set(found) <= set(LESION.sequence_names)
    return UNDERSTOOD


def recipe(folder: Path, data: bytes) -> str:
    path = folder / "recipe.json"
    path.write_bytes(data)
    try:
        found = load_recipe(path)
    except DataError as error:
        assert str(path) in str(error)
        return REFUSED
    assert found.sequence_names and max(found.network.channels) <= 4096
    return UNDERSTOOD


def bundle(folder: Path, data: bytes) -> str:
    """The damaged file in a bundle whose checksum is right, as an attacker would make it."""
    place = folder / "model"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    weights, model = CORPUS / "bundle" / "weights.safetensors", CORPUS / "bundle" / "model.json"
    is_model = data[:1] == b"{"
    (place / "weights.safetensors").write_bytes(weights.read_bytes() if is_model else data)
    (place / "card.md").write_text("# Nothing")
    if is_model:
        (place / "model.json").write_bytes(data)
    else:
        described = json.loads(model.read_text())
        described["weights_sha256"] = sha256(place / "weights.safetensors")
        (place / "model.json").write_text(json.dumps(described))
    try:
        loaded = load_bundle(place)
        arrays = load_weights(loaded)
    except (DataError, MissingInputError):
        return REFUSED
    assert all(np.isfinite(array).all() for array in arrays.values())
    return UNDERSTOOD


def options(folder: Path, data: bytes) -> str:
    path = folder / "options.toml"
    path.write_bytes(data)
    try:
        found = read_config(path)
        given = {"bids_dir": None, "output_dir": folder, "level": "participant"} | found
        again = RunOptions(**given).to_toml()
    except ScsegError as error:
        assert str(path) in str(error)
        return REFUSED
    assert isinstance(again, str)
    return UNDERSTOOD


READERS: dict[str, Read] = {
    "header": header, "sidecar": sidecar, "filter": filters, "recipe": recipe, "bundle": bundle,
    "options": options,
}  # fmt: skip


#: What a reader must be able to use; all else in the corpus must be refused. A sidecar never costs an image.
SOUND = {
    *("header/nifti1.nii", "header/nifti2.nii", "header/big-endian.nii"),
    *(f"sidecar/{file.name}" for file in seeds("sidecar")),
    *("filter/usual.json", "filter/run.json", "recipe/usual.json", "options/usual.toml"),
    *("bundle/model.json", "bundle/weights.safetensors"),
}


@pytest.mark.parametrize(
    ("kind", "file"),
    [(kind, file) for kind in READERS for file in seeds(kind)],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_every_file_of_the_corpus(kind, file, tmp_path):
    expected = UNDERSTOOD if f"{kind}/{file.name}" in SOUND else REFUSED
    assert READERS[kind](tmp_path, file.read_bytes()) == expected


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_understood_or_refused(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp(kind)

    @EXAMPLES
    @given(damaged(kind))
    def look(example: tuple[str, bytes]) -> None:
        assert READERS[kind](folder, example[1]) in (UNDERSTOOD, REFUSED)

    look()
