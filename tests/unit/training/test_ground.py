"""What a run's cases have in common, for its bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_cases import NAMES, make_case, save

from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.cases import Made
from bids_scseg.training.config import TrainingConfig
from bids_scseg.training.ground import open_ground


def made_of(root: Path, *methods: str | None) -> Made:
    """How a run's cases were made, whose records state these origins of their cords."""
    for number, method in enumerate(methods):
        folder = save(root / "data" / f"sub-{number}", make_case(str(number)))
        record = json.loads((folder / "case.json").read_text())
        record |= {} if method is None else {"preparation": 1, "cord_method": method}
        (folder / "case.json").write_text(json.dumps(record))
    recipe = load_recipe("cord-lesion")
    recipe = replace(recipe, network=replace(recipe.network, sequences=NAMES))
    config = TrainingConfig(name="tiny", recipe="cord-lesion")
    with open_ground(config, root / "data", recipe=recipe, out=root / "run") as ground:
        return ground.made


@pytest.mark.parametrize(
    ("methods", "recorded"),
    [
        (("masks",) * 4, "masks"),
        (("masks", "cord-finder", "masks", "masks"), "cord-finder+masks"),
        (("masks", "cord-finder+sct", "sct", "masks"), "cord-finder+masks+sct"),
        (("masks", "masks", "masks", None), None),  # of that one nothing is known
    ],
)
def test_all_origins_of_cords_are_recorded(
    tmp_path: Path, methods: tuple[str | None, ...], recorded: str | None
) -> None:
    made = made_of(tmp_path, *methods)
    assert made.cord_method == recorded
    assert made.preparation == (None if None in methods else 1)
