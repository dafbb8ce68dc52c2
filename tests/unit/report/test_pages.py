"""Writing pages: all or nothing, and nothing from outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import OutputError
from bids_scseg.report import pages


@pytest.mark.parametrize(
    "address",
    [
        "http://x.org",
        "HTTPS://x.org",
        "//x.org/a",
        "javascript:alert(1)",
        "data:text/html,x",
        "file:///etc",
        "\\\\host\\x",
    ],
)
def test_addresses_outside_are_dropped(address):
    assert pages.relative(address) == ""


@pytest.mark.parametrize(
    "address", ["sub-01.html", "sub-01/anat/a_mask.nii.gz", "../x", "a b.html", "#lesions"]
)
def test_addresses_inside_are_kept(address):
    assert pages.relative(address) == address


@given(st.text(max_size=20))
def test_no_address_with_a_scheme_survives(words):
    assert pages.relative(f"javascript:{words}") == ""


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "page.html"
    pages.write_bytes(target, b"one")
    pages.write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"page\.html: cannot be written"):
        pages.write_bytes(tmp_path / "file" / "page.html", b"x")


def test_nothing_half_written_stays_behind(tmp_path):
    target = tmp_path / "page.html"
    target.mkdir()  # replacing a folder by a file fails
    with pytest.raises(OutputError):
        pages.write_bytes(target, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
