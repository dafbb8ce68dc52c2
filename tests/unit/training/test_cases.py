from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_cases import NAMES, SIZE, make_case, save

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.cases import Made, check_rules, find_cases, kept_sequences, load_case, rules_of
from bids_scseg.training.dataset import crop


def test_round_trip_through_disk_and_to_a_worker(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", make_case())
    (folder / "lesions.json").write_text('{"1": {"visible": ["STIR"], "faint": ["T2Sag"]}}', encoding="utf-8")
    case = load_case(folder, sequences=NAMES)
    assert isinstance(case.image, np.memmap)
    assert case.lesions == (1, 2)
    assert case.visible == {1: ("STIR",)}
    assert case.faint == {1: ("T2Sag",)}
    sent = pickle.dumps(case)
    assert len(sent) < 1000  # a path, not the arrays
    assert np.array_equal(pickle.loads(sent).label, case.label)  # noqa: S301
    memory = pickle.loads(pickle.dumps(make_case()))  # noqa: S301
    assert np.array_equal(memory.image, make_case().image)


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no prepared cases"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"label": np.zeros((16, 16, 39), np.uint8)}, "label of shape"),
        ({"label": np.zeros(SIZE, np.int32)}, "int32"),
        ({"coverage": np.ones((2, *SIZE), bool)}, "coverage"),
        ({"sequences": ("T2Sag", "STIR", "PSIR")}, "PSIR"),
        ({"available": np.zeros(3, bool)}, "no sequence"),
    ],
)
def test_what_does_not_match_is_refused(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    with pytest.raises(DataError, match=word):
        load_case(save(tmp_path / "a", make_case(**changes)), sequences=NAMES)


def test_a_missing_label_says_what_to_do(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", make_case())
    (folder / "label.npy").unlink()
    with pytest.raises(MissingInputError, match="Prepare the labels"):
        load_case(folder, sequences=NAMES)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole", make_case())
    for name in ("image.npy", "label.npy"):
        for size in (0, 100, 200):  # within the header, and within the numbers
            folder = shutil.copytree(whole, tmp_path / f"{name}-{size}")
            (folder / name).write_bytes((whole / name).read_bytes()[:size])
            with pytest.raises(DataError, match=rf"{name}: not readable.*Prepare the case again"):
                load_case(folder, sequences=NAMES)
    (whole / "case.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="malformed"):
        load_case(whole, sequences=NAMES)


def test_cases_of_another_preparation_are_refused() -> None:
    recipe = load_recipe("cord-lesion")
    rules = rules_of(recipe)
    check_rules([make_case(), make_case(made=Made(rules=rules))], recipe)
    for key, value in (("normalize", "coverage"), ("spacing_mm", 1.0), ("window_vox", [64, 64])):
        case = make_case(made=Made(rules={**rules, key: value}))
        with pytest.raises(DataError, match=f"prepared with {key}.*as in recipe cord-lesion"):
            check_rules([case], recipe)


def test_drafts_are_no_cases(tmp_path: Path) -> None:
    folder = save(tmp_path / "sub-01", make_case())
    save(tmp_path / ".sub-01.partial", make_case())
    assert find_cases(tmp_path) == [folder]
    assert find_cases(tmp_path / "sub-01") == [folder]


def test_a_network_of_some_sequences_takes_their_channels(tmp_path: Path) -> None:
    case = make_case()
    folder = save(tmp_path / "a", case)
    some = load_case(folder, sequences=("MP2RAGE", "STIR"))
    assert some.sequences == ("MP2RAGE", "STIR")
    assert some.available.tolist() == [False, True]
    assert isinstance(some.image, np.memmap)  # nothing is copied
    for one in (some, pickle.loads(pickle.dumps(some))):  # noqa: S301
        patch = crop(one, (8, 8, 20), SIZE, kept=np.array([False, True]))
        assert np.array_equal(patch.image[1], case.image[1].astype(np.float32))
        assert not patch.image[0].any()
        assert np.array_equal(patch.coverage[1], case.coverage[1])
    assert np.array_equal(some.covered(some.available), case.coverage[1])
    # none of the wanted ones is there: no error, training leaves such cases out
    assert not load_case(folder, sequences=("MP2RAGE",)).available.any()


def test_how_a_case_was_made_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", make_case())
    assert load_case(folder, sequences=NAMES).made.cord_method is None
    record = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps({**record, "preparation": 1, "cord_method": "masks"}))
    assert load_case(folder, sequences=NAMES).made.cord_method == "masks"


def test_kept_sequences_are_the_available_ones_among_the_wanted() -> None:
    assert kept_sequences(make_case(), ()).tolist() == [True, True, False]
    assert kept_sequences(make_case(), ("STIR", "MP2RAGE")).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        ('{"1": {"visible": []}}', "malformed.*faint"),
        ('{"a": {"visible": [], "faint": []}}', "malformed"),
        ('{"1": {"visible": null, "faint": []}}', "malformed"),
    ],
)
def test_malformed_visibility_is_named(tmp_path: Path, content: str, word: str) -> None:
    folder = save(tmp_path / "a", make_case())
    (folder / "lesions.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"lesions\.json: {word}"):
        load_case(folder, sequences=NAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"sequences": None},
        {"sequences": [1, 2, 3]},
        {"available": ["a", "b", "c"]},
        {"rules": [1]},
        {"geometry": {"slabs": [{"key": "T2Sag"}]}},
        {"geometry": {"slabs": [{"key": "T2Sag", "grid": {"affine": [1]}}]}},
        {"geometry": [1]},
    ],
)
def test_malformed_records_are_named(tmp_path: Path, change: dict[str, object]) -> None:
    folder = save(tmp_path / "a", make_case())
    record = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps({**record, **change}), encoding="utf-8")
    with pytest.raises(DataError, match=r"case\.json: malformed"):
        load_case(folder, sequences=NAMES)


def test_a_case_without_a_name_has_its_folders(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", make_case())
    record = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps({**record, "subject": None, "case": ""}), encoding="utf-8")
    case = load_case(folder, sequences=NAMES)
    assert (case.subject, case.name) == ("a", "a")
