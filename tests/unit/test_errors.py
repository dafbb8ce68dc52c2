from __future__ import annotations

import pickle

import pytest

from bids_scseg import errors
from bids_scseg.errors import ImageError, ScsegError


def test_message_says_file_found_expected_and_next_step_on_one_line():
    error = ImageError("is\ntruncated", file="a.nii.gz", expected="1000 bytes", remedy="copy it again")
    assert str(error) == "a.nii.gz: is truncated; expected 1000 bytes. Copy it again"


def test_parts_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("broken", file="a", expected="b", remedy="c")))  # noqa: S301
    assert (type(error), error.found, error.file, error.expected, error.remedy) == (
        ImageError,
        "broken",
        "a",
        "b",
        "c",
    )


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ScsegError", 1), ("SessionError", 1), ("InvalidDatasetError", 16), ("UnknownLevelError", 17),
        ("NoMatchError", 18), ("UsageError", 64), ("DataError", 65), ("MissingInputError", 66),
        ("OutputError", 73),
        ("BusyError", 75), ("MissingToolError", 127),
    ],
)  # fmt: skip
def test_exit_codes(name, code):
    cls = getattr(errors, name)
    assert issubclass(cls, ScsegError)
    assert cls.exit_code == code
