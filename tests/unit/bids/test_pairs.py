"""Partners in two folders: by path, by entities, by session; nothing is lost in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_scseg.bids import pairs
from bids_scseg.bids.pairs import (
    choose_space,
    find_masks,
    find_pairs,
    find_probabilities,
    lesion_places,
    probability_of,
    read_participants,
)
from bids_scseg.errors import DataError, MissingInputError


@pytest.fixture
def folder(tmp_path):
    """Write empty files under a name; the content does not matter for pairing."""

    def make(name, *files):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for file in files:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return root

    return make


def _paired(pairing):
    return [(pair.truth.relative, pair.prediction.relative, pair.how) for pair in pairing.pairs]


def test_the_same_path_is_a_pair(folder):
    truth = find_masks(folder("t", "a/case1.nii.gz", "b/case1.nii.gz", "case2.nii"))
    pred = find_masks(folder("p", "a/case1.nii.gz", "b/case1.nii.gz", "case2.nii.gz", "case3.nii.gz"))
    found = find_pairs(truth, pred)
    assert _paired(found) == [
        ("a/case1.nii.gz", "a/case1.nii.gz", "name"),
        ("b/case1.nii.gz", "b/case1.nii.gz", "name"),
        ("case2.nii", "case2.nii.gz", "name"),
    ]
    assert [(item.side, item.file, item.state) for item in found.unpaired] == [
        ("prediction", "case3.nii.gz", "missing")
    ]


def test_other_programs_names_meet_by_entities(folder):
    truth = find_masks(folder("t", "sub-1/anat/sub-1_acq-sag_T2w_label-lesion_seg.nii.gz"))
    pred = find_masks(
        folder(
            "p",
            "sub-1/anat/sub-1_acq-sag_label-lesion_desc-T2w_mask.nii.gz",
            "sub-1/anat/sub-1_acq-sag_label-lesion_desc-T2starw_mask.nii.gz",
            "sub-1/anat/sub-1_acq-sag_label-SC_mask.nii.gz",
        )
    )
    assert len(pred) == 2  # the cord is no lesion
    found = find_pairs(truth, pred)
    assert [how for *_, how in _paired(found)] == ["entities"]
    assert found.pairs[0].prediction.suffix == "T2w"
    assert [item.state for item in found.unpaired] == ["missing"]


def test_flat_and_nested_folders_meet(folder):
    truth = find_masks(folder("t", "sub-1/ses-a/anat/sub-1_ses-a_acq-x_label-lesion_mask.nii.gz"))
    pred = find_masks(folder("p", "out/sub-1_ses-a_acq-x_label-lesion_mask.nii.gz"))
    assert [how for *_, how in _paired(find_pairs(truth, pred))] == ["entities"]
    plain = find_pairs(find_masks(folder("q", "x/1.nii.gz")), find_masks(folder("r", "1.nii.gz")))
    assert [how for *_, how in _paired(plain)] == ["entities"]


def test_names_without_sub_say_lesion_and_whose_they_are(folder):
    """Cord masks beside them are no lesion masks, and patients' files of one name are not one patient's."""
    masks = find_masks(folder("flat", "case1_lesion.nii.gz", "case1_cord.nii.gz", "case2_lesion.nii.gz"))
    assert [item.relative for item in masks] == ["case1_lesion.nii.gz", "case2_lesion.nii.gz"]
    masks = find_masks(folder("named", "patient1/lesion.nii.gz", "patient2/lesion.nii.gz"))
    assert [item.subject for item in masks] == ["patient1/lesion", "patient2/lesion"]
    masks = find_masks(
        folder("deep", "sub-1/ses-a/lesion.nii.gz", "sub-1/ses-b/lesion.nii.gz", "sub-2/l.nii")
    )
    assert [(item.subject, item.session) for item in masks] == [("sub-1", "ses-a"), ("sub-1", "ses-b")]
    masks = find_masks(folder("said", "sub-lesion1_T2w_mask.nii.gz", "sub-2_T2w_lesion.nii.gz"))
    assert [item.subject for item in masks] == ["sub-2"]


def test_two_raters_are_ambiguous(folder):
    names = ("sub-1/sub-1_label-lesion_desc-one_mask.nii.gz", "sub-1/sub-1_label-lesion_desc-two_mask.nii.gz")
    truth = find_masks(folder("t", *names))
    pred = find_masks(folder("p", "sub-1/sub-1_label-lesion_mask.nii.gz"))
    found = find_pairs(truth, pred)
    assert found.pairs == ()
    assert [item.state for item in found.unpaired] == ["ambiguous"] * 3
    assert "desc-one" in found.unpaired[2].reason
    chosen = find_masks(folder("t"), pattern="*desc-one*")
    assert len(find_pairs(chosen, pred).pairs) == 1


def test_a_mask_and_its_instances_are_one(folder):
    root = folder(
        "t",
        "sub-1/sub-1_acq-x_label-lesion_mask.nii.gz",
        "sub-1/sub-1_acq-x_seg-lesions_dseg.nii.gz",
        "sub-1/sub-1_acq-x_label-lesion_probseg.nii.gz",
    )
    (mask,) = find_masks(root)
    assert mask.kind == "mask"
    assert [path.name for path in mask.twins] == ["sub-1_acq-x_seg-lesions_dseg.nii.gz"]
    maps = find_probabilities(root)
    assert len(maps) == 1
    assert probability_of(mask, maps) == maps[0]
    assert probability_of(mask, ()) is None


def test_the_session_truth_meets_the_fused_prediction(folder):
    head = "sub-1/ses-a/anat/sub-1_ses-a"
    truth = find_masks(folder("t", f"{head}_seg-lesions_res-iso_desc-truth_dseg.nii.gz"))
    assert truth[0].space == "res-iso"
    names = [f"{head}_acq-sag{part}_label-lesion_mask.nii.gz" for part in ("", "_chunk-1", "_chunk-2")]
    other = f"{head}_acq-ax_label-lesion_desc-T2w_mask.nii.gz"
    found = find_pairs(truth, find_masks(folder("p", *names, other)))
    assert _paired(found) == [(truth[0].relative, names[0], "session")]
    assert len(found.unpaired) == 3


def test_spaces(folder):
    masks = find_masks(
        folder("t", "sub-1/sub-1_label-lesion_mask.nii.gz", "sub-1/sub-1_space-X_label-lesion_mask.nii")
    )
    assert choose_space(masks) == "native"
    assert choose_space(masks, "space-X") == "space-X"
    assert choose_space([mask for mask in masks if mask.space != "native"]) == "space-X"
    with pytest.raises(DataError, match="space-X"):
        choose_space(masks, "res-iso")


def test_empty_folders_are_errors(folder, tmp_path):
    with pytest.raises(MissingInputError, match="no such folder"):
        find_masks(tmp_path / "none")
    with pytest.raises(MissingInputError, match="among 1"):
        find_masks(folder("raw", "sub-1/anat/sub-1_T2w.nii.gz"))
    with pytest.raises(MissingInputError, match="nothing"):
        find_masks(folder("raw"), pattern="nothing*")


def test_places_come_from_the_own_table_or_the_only_other(folder):
    root = folder(
        "t", "sub-1/sub-1_acq-x_label-lesion_mask.nii.gz", "sub-1/sub-1_acq-x_seg-lesions_dseg.nii.gz"
    )
    own = root / "sub-1/sub-1_acq-x_seg-lesions_dseg.tsv"
    session = root / "sub-1/sub-1_seg-lesions_desc-truth_dseg.tsv"
    (mask,) = find_masks(root)
    assert lesion_places(mask) is None
    own.write_text("index\tname\n1\ta\n")
    assert lesion_places(mask) is None
    session.write_text("index\tname\tlevel\tcolumn\n1\ta\tC3\tdorsal\n2\tb\tn/a\tcentral\n")
    path, places = lesion_places(mask)
    assert path.name == "sub-1_acq-x_seg-lesions_dseg.nii.gz"
    assert places == {1: ("C3", "dorsal"), 2: (None, "central")}
    own.write_text("index\tname\tlevel\n1\ta\tT1\n")
    assert lesion_places(mask)[1] == {1: ("T1", None)}


def test_participants(tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsex\tage\nsub-1\tF\t30\n2\tn/a\t\n")
    assert read_participants(table, ["sex"]) == {"sex": {"sub-1": "F", "sub-2": None}}
    with pytest.raises(DataError, match="site"):
        read_participants(table, ["site"])
    table.write_text("\ufeffparticipant_id\tage\nsub-1\t30\nsub-1\t30\nsub-2\tNaN\nsub-3\tNA\n", "utf-8")
    assert read_participants(table, ["age"]) == {"age": {"sub-1": "30", "sub-2": None, "sub-3": None}}
    table.write_text("participant_id\tage\nsub-1\t30\nsub-1\t31\n")
    with pytest.raises(DataError, match="sub-1 has age 30 and 31"):
        read_participants(table, ["age"])
    with pytest.raises(MissingInputError, match="no such file"):
        read_participants(tmp_path / "none.tsv", ["sex"])


_NAMES = st.lists(
    st.tuples(st.sampled_from(["1", "2"]), st.sampled_from(["", "_acq-a", "_acq-b", "_acq-a_run-1"]),
              st.sampled_from(["", "_T2w", "_T1w"]), st.sampled_from(["", "_desc-x"])),
    min_size=1, max_size=6, unique=True,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(_NAMES, _NAMES)
def test_every_file_is_in_one_pair_or_listed(tmp_path_factory, truth, prediction):
    roots = []
    for names in (truth, prediction):
        root = tmp_path_factory.mktemp("masks")
        for subject, entities, suffix, desc in names:
            (root / f"sub-{subject}").mkdir(exist_ok=True)
            (root / f"sub-{subject}/sub-{subject}{entities}{suffix}_label-lesion{desc}_mask.nii.gz").touch()
        roots.append(find_masks(root))
    found = find_pairs(*roots)
    for side, masks in zip(("truth", "prediction"), roots, strict=True):
        paired = [getattr(pair, side).relative for pair in found.pairs]
        listed = [item.file for item in found.unpaired if item.side == side]
        assert sorted(paired + listed) == sorted(mask.relative for mask in masks)
    assert all(pair.truth.subject == pair.prediction.subject for pair in found.pairs)


@pytest.mark.parametrize("how", ["name", "entities", "session", "missing"])
def test_partners_are_looked_up_not_searched(how, monkeypatch):
    """Each comparison of two files is one of few: those of 400 subjects are never gone through for each."""
    names = {"name": "x", "entities": "x_label-lesion", "session": "x_acq-1_label-lesion", "missing": "y"}
    truths = [_mask(f"sub-{n}/sub-{n}_run-x_mask.nii.gz") for n in range(400)]
    numbers = range(400, 800) if how == "missing" else range(400)
    predictions = [_mask(f"sub-{n}/sub-{n}_run-{names[how]}_mask.nii.gz") for n in numbers]
    looks = 0
    stem, fit = pairs.MaskFile.stem.fget, pairs._suffixes_fit

    def counted(function):
        def call(*arguments):
            nonlocal looks
            looks += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(pairs.MaskFile, "stem", property(counted(stem)))
    monkeypatch.setattr(pairs, "_suffixes_fit", counted(fit))
    found = find_pairs(truths, predictions)
    assert {pair.how for pair in found.pairs} == ({how} if how != "missing" else set())
    assert len(found.pairs) == (0 if how == "missing" else 400)
    assert looks < 10_000


def test_the_map_of_a_mask_is_looked_up_not_searched(folder, monkeypatch):
    names = [f"sub-{n}/sub-{n}_acq-x_label-lesion" for n in range(60)]
    maps = find_probabilities(folder("t", *(f"{name}_probseg.nii.gz" for name in names)))
    described = 0
    identity = pairs._identity

    def counted(item):
        nonlocal described
        described += 1
        return identity(item)

    monkeypatch.setattr(pairs, "_identity", counted)
    masks = [_mask(f"{name}_mask.nii.gz") for name in names]
    found = [probability_of(mask, maps) for mask in masks]
    assert [item.subject for item in found] == [f"sub-{n}" for n in range(60)]
    assert described < 500
    assert probability_of(masks[7], list(maps)) == found[7]


def _mask(name):
    return pairs._describe(Path("/data"), Path("/data") / name)
