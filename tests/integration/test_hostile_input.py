"""Hostile files, a session each, beside good ones: told in one line, none lost, nothing run or written."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hostile import INPUTS
from integration.checks import call, status
from integration.cohorts import STAR, add_session, describe, image_path

from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.query import find_studies
from bids_scseg.errors import ImageError
from bids_scseg.recipe.load import load_recipe
from bids_scseg.space.nifti import read_image

GOOD = ("first", "zlast")
MEMORY_BYTES = 250_000_000  # while all of them are looked at: the largest sidecar allowed, and room


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    """A dataset with one session for each hostile input."""
    root = describe(tmp_path_factory.mktemp("hostile") / "bids")
    for name in (*GOOD, *INPUTS):
        add_session(root, f"sub-{name}", [STAR])
    for name, hostile in INPUTS.items():
        hostile.make(image_path(root, f"sub-{name}", STAR.rest))
    return root


@pytest.fixture(scope="module")
def plans(ward):
    """What is planned, and the largest memory that Python took for it."""
    tracemalloc.start()
    try:
        recipe = load_recipe("cord-lesion")
        found = {study.subject: make_plan(study, recipe) for study in find_studies(ward)}
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_there_are_sixty_and_more():
    assert len(INPUTS) >= 60


@pytest.mark.parametrize("name", INPUTS)
def test_each_is_told_in_clear_words_or_handled(name, plans, ward):
    hostile, plan = INPUTS[name], plans[0][name]
    if hostile.kept:
        assert any(hostile.words in note for note in plan.warnings), plan.warnings
    elif hostile.words and not hostile.late:
        assert plan.anchor is None
        assert any(hostile.words in reason for _, reason in plan.left_out), plan.left_out
        return
    assert plan.anchor == "T2StarAx", plan.left_out
    if hostile.late:
        with pytest.raises(ImageError, match=hostile.words) as caught:
            read_image(image_path(ward, f"sub-{name}", STAR.rest))
        assert caught.value.remedy


def test_the_good_ones_beside_them_are_not_lost(plans):
    found, memory = plans
    assert set(found) == {*GOOD, *INPUTS}
    for name in GOOD:
        assert found[name].anchor == "T2StarAx"
        assert found[name].left_out == ()
    assert memory < MEMORY_BYTES


def test_the_program_shows_them_all_and_writes_nothing(ward, tmp_path):
    before = sorted(os.fsencode(path) for path in ward.rglob("*"))
    result = call(ward, tmp_path / "out", "participant", "--dry-run", "--cord", "builtin")
    assert result.code == 0
    assert "Traceback" not in result.out + result.err
    for name, hostile in INPUTS.items():
        assert f"sub-{name}: " in result.out
        assert hostile.late or hostile.words in result.out
    assert sorted(os.fsencode(path) for path in ward.rglob("*")) == before
    assert not (tmp_path / "out").exists()
    assert not any((folder / "pwned").exists() for folder in (Path.cwd(), ward, tmp_path))


E2E = ("bytes", "shell", "pipe", "bomb", "lyinglong", "hugescale", "newline")
KEPT = ("deep", "digits", "jsonpipe")


@pytest.fixture(scope="module")
def ran(ward, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("hostile") / "out"
    names = ("first", "numbers", *KEPT, *E2E)
    labels = f"labels={ward / 'derivatives' / 'labels'}"
    return out, run(ward, out, "-d", labels, "--participant-label", *names)


def test_a_run_refuses_them_and_finishes_the_good_ones(ran):
    out, result = ran
    assert result.code == 1
    assert "Traceback" not in result.err
    rows = status(out)
    done = {name for name, row in rows.items() if row["state"] == "done"}
    assert done == {"sub-first", "sub-numbers", *(f"sub-{name}" for name in KEPT)}
    for name in KEPT:
        assert "its sidecar" in (out / f"sub-{name}.html").read_text(encoding="utf-8")
    for name in E2E:
        row = rows[f"sub-{name}"]
        assert row["state"] == "refused"
        assert INPUTS[name].words in row["cause"]
        assert row["remedy"] != "n/a"
        assert (out / f"sub-{name}.html").is_file()
        json.loads((out / "logs" / f"sub-{name}.json").read_text(encoding="utf-8"))
        assert not (out / f"sub-{name}").exists()


def test_links_that_leave_the_dataset_can_be_allowed(tmp_path, caplog):
    """A dataset whose images lie in a central store."""
    root = describe(tmp_path / "bids")
    add_session(root, "sub-01", [STAR])
    image = image_path(root, "sub-01", STAR.rest)
    store = tmp_path / "store" / image.name
    store.parent.mkdir()
    image.rename(store)
    image.symlink_to(store)
    words = "a link that leads out of the dataset; copy the file into it, or allow it with --follow-links"
    refused = call(root, tmp_path / "out", "participant", "--dry-run", "--cord", "builtin")
    assert words in refused.out
    told = "1 of 1 images not used, as links that lead out of the dataset"
    assert caplog.text.count(told) == 1
    allowed = call(root, tmp_path / "out", "participant", "--dry-run", "--cord", "builtin", "--follow-links")
    assert "sub-01: anchor T2StarAx" in allowed.out
