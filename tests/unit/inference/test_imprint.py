from __future__ import annotations

from dataclasses import replace

import pytest

from bids_scseg.errors import DataError, OutputError, UsageError
from bids_scseg.inference.bundle import load_bundle, packaged_models
from bids_scseg.inference.imprint import imprint


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_only_what_is_named_changes(make_bundle):
    bundle = make_bundle()
    before = files(bundle.path)
    signed = imprint(bundle.path, license="cc-by-4.0", authors=["Ada Ä.", "Grace"], contact="a@b.org")
    assert (signed.facts.license, signed.facts.authors) == ("CC-BY-4.0", ("Ada Ä.", "Grace"))
    assert replace(signed, facts=bundle.facts) == bundle  # recipe, threshold, provenance, checksums
    assert signed.inference_sha256 == bundle.inference_sha256
    after = files(bundle.path)
    assert {name for name in before if before[name] != after[name]} == {"model.json"}
    again = imprint(bundle.path, authors=["Grace"])
    assert again.facts == replace(signed.facts, authors=("Grace",))
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]  # no draft is left


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"license": "free for friends"}, "SPDX"),
        ({"license": ""}, "SPDX"),
        ({"authors": ["Ada", " "]}, "facts.authors is ' '"),
        ({"contact": "a\nb"}, "facts.contact is"),
        ({"contact": "\x1b[2J"}, "one line of printable text"),
    ],
)
def test_what_is_no_licence_or_line_is_refused_and_nothing_is_written(make_bundle, given, message):
    bundle = make_bundle()
    before = files(bundle.path)
    with pytest.raises(DataError, match=message):
        imprint(bundle.path, **given)
    assert files(bundle.path) == before


def test_packaged_models_are_not_written(make_bundle):
    name = sorted(packaged_models())[0]
    with pytest.raises(UsageError, match="comes with the program"):
        imprint(name, license="MIT")
    with pytest.raises(UsageError, match="comes with the program"):
        imprint(packaged_models()[name], license="MIT")


def test_a_failure_leaves_the_bundle_whole(make_bundle, monkeypatch):
    bundle = make_bundle()

    def fail(self, target):
        raise OSError("disk is full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OutputError, match="disk is full"):
        imprint(bundle.path, license="MIT")
    assert load_bundle(bundle.path) == bundle
