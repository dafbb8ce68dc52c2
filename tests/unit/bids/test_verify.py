"""BIDS URIs and links of an output folder: where they lead, and where they must not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.bids.verify import Problem, Verification, dataset_links, resolve, total, verify_written
from bids_scseg.errors import DataError, MissingInputError, ScsegError


@pytest.fixture
def links(tmp_path):
    for folder in ("raw/sub-01/anat", "out/sub-01"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "raw/sub-01/anat/a.nii.gz").touch()
    (tmp_path / "out/sub-01/b.json").touch()
    (tmp_path / "secret").touch()
    return {"": tmp_path / "out", "raw": tmp_path / "raw"}


def test_uris_lead_to_files(links):
    assert resolve("bids:raw:sub-01/anat/a.nii.gz", links) == links["raw"] / "sub-01/anat/a.nii.gz"
    assert resolve("bids::sub-01/b.json", links) == links[""] / "sub-01/b.json"


@pytest.mark.parametrize(
    ("uri", "kind", "words"),
    [
        ("bids:raw:sub-01/anat/x.nii.gz", MissingInputError, "is not there"),
        ("bids:raw:sub-01/anat", MissingInputError, "is not there"),
        ("bids:raw:../secret", DataError, "leads out"),
        ("bids:raw:/etc/passwd", DataError, "leads out"),
        ("bids::sub-01/../../secret", DataError, "leads out"),
        ("bids:other:a", DataError, "not there"),
        ("sub-01/b.json", DataError, "no BIDS URI"),
        ("", DataError, "no BIDS URI"),
        (["bids::a"], DataError, "no BIDS URI"),
        (None, DataError, "no BIDS URI"),
    ],
)
def test_uris_that_lead_nowhere(uri, kind, words, links):
    with pytest.raises(kind, match=words):
        resolve(uri, links)


@given(st.text(max_size=30))
def test_no_uri_leads_out(tmp_path_factory, relative):
    root = tmp_path_factory.getbasetemp() / "data"
    root.mkdir(exist_ok=True)
    (root / "a").touch()
    try:
        path = resolve(f"bids:raw:{relative}", {"raw": root})
    except (ScsegError, ValueError):  # ValueError: a null byte
        return
    assert path.resolve().is_relative_to(root.resolve())


@pytest.mark.parametrize(
    ("address", "found"),
    [("../raw", True), ("file://{}/raw", True), ("{}/raw", True), ("../gone", False), ("http://x.org", False),
     ("file://[", False), (3, False), (None, False)],
)  # fmt: skip
def test_links_of_a_dataset(address, found, links, tmp_path):
    address = address.replace("{}", str(tmp_path)) if isinstance(address, str) else address
    description = tmp_path / "out" / "dataset_description.json"
    description.write_text(json.dumps({"DatasetLinks": {"raw": address}}))
    resolved, problems = dataset_links(tmp_path / "out")
    assert resolved.get("raw") == (tmp_path / "raw" if found else None)
    assert len(problems) == (0 if found else 1)
    again, none = dataset_links(tmp_path / "out", raw=tmp_path / "raw")
    assert again["raw"] == tmp_path / "raw" and none == ()


@pytest.mark.parametrize("content", ["[]", "{}", '{"DatasetLinks": 3}', "{"])
def test_descriptions_that_tell_nothing(content, tmp_path):
    (tmp_path / "dataset_description.json").write_text(content)
    with pytest.raises(DataError):
        dataset_links(tmp_path)
    assert verify_written(tmp_path, ["a.json"]).startswith("not verified: ")


def test_words_for_the_page(links, tmp_path):
    out = tmp_path / "out"
    (out / "dataset_description.json").write_text('{"DatasetLinks": {"raw": "../raw"}}')
    (out / "sub-01/b.json").write_text('{"Sources": ["bids:raw:sub-01/anat/a.nii.gz"]}')
    assert verify_written(out, ["sub-01/b.json", "sub-01/c.tsv"]).startswith(
        "1 sources are there, 0 lattices"
    )
    (out / "sub-01/b.json").write_text('{"Sources": "bids:raw:gone"}')
    assert verify_written(out, ["sub-01/b.json"]).startswith(
        "WRONG: sub-01/b.json: bids:raw:gone is not there"
    )


def test_parts_are_added_up():
    wrong = Problem(file="a", found="is not there", expected="a file")
    parts = [
        Verification(owner="sub-01", files=2, sources=3),
        Verification(owner="sub-02", problems=(wrong,)),
    ]
    whole = total(parts)
    assert (whole.files, whole.sources, whole.passed) == (2, 3, False)
    assert str(wrong) == "a: is not there; expected a file"
    assert whole.to_json()["verdict"] == "failed"
