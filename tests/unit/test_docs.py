"""The documentation names everything that users meet, and its links lead somewhere."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from bids_scseg.cli.parser import build_parser
from bids_scseg.cli.tools import build_tools_parser
from bids_scseg.errors import ScsegError
from bids_scseg.measure.changes import CHANGE_COLUMNS, PAIR_COLUMNS
from bids_scseg.measure.cohort import KEY_COLUMNS, PARTICIPANT_COLUMNS, RUN_COLUMNS, STATE_COLUMNS
from bids_scseg.measure.comparisons import COMPARISON_COLUMNS, SUMMARY_COLUMNS
from bids_scseg.measure.lesions import lesion_columns
from bids_scseg.measure.quality import quality_columns
from bids_scseg.measure.ratings import RATING_COLUMNS
from bids_scseg.measure.session import session_columns
from bids_scseg.options import RunOptions
from bids_scseg.recipe.load import load_recipe
from bids_scseg.training.config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
    ValidationConfig,
)
from bids_scseg.workflows.status import STATUS_COLUMNS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "benchmarks/README.md")),
        *DOCS.rglob("*.md"),
        *(ROOT / "bids_scseg" / "models").rglob("*.md"),
    ]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
#: The page that has a command's options; those that it shares with the app stand in usage.md.
TOOL_PAGES = {
    "demo": "synthetic.md",
    "synth": "prepare.md",
    "implant": "synthetic.md",
    "prepare": "prepare.md",
    "train": "training.md",
    "experiment": "experiments/walsh2024.md",
    "evaluate": "evaluation.md",
    "model info": "bundles.md",
    "model verify": "bundles.md",
    "model set": "bundles.md",
    "model export": "bundles.md",
    "slurm": "hpc.md",
    "verify": "reliability.md",
}
#: Homes and work places of some machine; BIDS and output folders of examples have other names.
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:work|home|root|Users|mnt|srv)/")


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def quoted(text: str) -> set[str]:
    """Words in backticks, outside code blocks."""
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


def actions() -> list[argparse.Action]:
    return [action for action in build_parser()._actions if action.option_strings]


@pytest.mark.parametrize("action", actions(), ids=lambda action: action.dest)
def test_usage_names_every_option(action):
    stated = " ".join(quoted(read("usage.md")))
    names = {option.replace("_", "-") for option in action.option_strings}
    missing = [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", stated)]
    assert not missing


def test_usage_names_no_option_that_is_not_there():
    known = {name for action in actions() for name in action.option_strings}
    cells = re.findall(r"^\| (`-.+?) \| ", read("usage.md"), re.MULTILINE)
    stated = {name for cell in cells for name in re.findall(r"(?<![\w-])--?[a-z][\w-]*", cell)}
    assert len(stated) > 25
    assert stated - known == set()


def commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> dict[str, argparse.ArgumentParser]:
    """Every command of a parser, those of its commands too, by the words that call it."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        return {" ".join(words): parser}
    found: dict[str, argparse.ArgumentParser] = {}
    for name, child in groups[0].choices.items():
        found |= commands(child, (*words, name))
    return found


def test_every_tool_has_a_page():
    assert set(commands(build_tools_parser())) == set(TOOL_PAGES)


@pytest.mark.parametrize("command", TOOL_PAGES)
def test_pages_name_every_option_of_the_tools(command):
    text = read(TOOL_PAGES[command])
    assert f"scseg {command}" in text
    text += read("usage.md") if command == "slurm" else ""
    missing = [
        action.dest
        for action in commands(build_tools_parser())[command]._actions
        if action.option_strings and action.dest != "help"
        if not any(re.search(rf"(?<![\w-]){name}(?![\w-])", text) for name in action.option_strings)
    ]
    assert missing == []


def test_usage_states_the_defaults_of_choices_and_numbers():
    text = read("usage.md")
    options = RunOptions(bids_dir=None, output_dir=Path("out"), level="participant")
    for option, default in (
        ("--model", f"`{options.model}`"),
        ("--cord", f"`{options.cord}`"),
        ("--output-spaces", f"`{options.output_spaces}`"),
        ("--random-seed", str(options.random_seed)),
        ("--device", f"`{options.device}`"),
    ):
        row = next(line for line in text.splitlines() if line.startswith("|") and option in line)
        # pipes inside a cell are escaped or in backticks, so cells are cut at " | "
        assert row.split(" | ")[1] == default


def test_usage_lists_every_exit_code():
    def codes(error: type[ScsegError]) -> set[int]:
        return {error.exit_code}.union(*(codes(child) for child in error.__subclasses__()))

    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", read("usage.md"), re.MULTILINE)}
    assert listed >= codes(ScsegError) | {0}


def test_usage_names_sequences_suffixes_and_status_columns():
    stated, recipe = quoted(read("usage.md")), load_recipe("cord-lesion")
    assert stated >= {*recipe.sequence_names, *STATUS_COLUMNS}
    assert stated >= {suffix for rule in recipe.sequences for suffix in rule.suffixes}


def test_outputs_names_every_column():
    columns = [*lesion_columns(("<sequence>",)), *session_columns(("<sequence>",))]
    columns += [*quality_columns(("<sequence>",)), *COMPARISON_COLUMNS, *SUMMARY_COLUMNS]
    columns += [*CHANGE_COLUMNS, *PAIR_COLUMNS]
    columns += [*KEY_COLUMNS, *STATE_COLUMNS, *RUN_COLUMNS, *RATING_COLUMNS, *PARTICIPANT_COLUMNS]
    names = {re.sub(r"^[CTL]\d+_", "<level>_", column.name) for column in columns}
    assert names - quoted(read("outputs.md")) == set()


def test_outputs_says_what_the_data_dictionaries_say():
    text, _, _ = read("outputs.md").partition("## Session row")
    rows = dict(re.findall(r"^\| `([^`]+)` \| [^|]* \| (.+) \|$", text, re.MULTILINE))
    for column in lesion_columns(()):
        assert rows[column.name] == column.description


@pytest.mark.parametrize(
    "kind",
    [
        TrainingConfig,
        DataConfig,
        ModelConfig,
        LossConfig,
        OptimizerConfig,
        SamplingConfig,
        AugmentConfig,
        ValidationConfig,
    ],
    ids=lambda kind: kind.__name__,
)
def test_training_names_every_field(kind):
    text = read("training.md")
    stated = quoted(text)
    missing = [name for name in kind.__dataclass_fields__ if name not in stated and f"[{name}]" not in stated]
    assert missing == []


def test_architecture_names_every_module():
    stated = quoted(read("architecture.md"))
    modules = {path.stem for path in (ROOT / "bids_scseg").rglob("*.py")}
    modules |= {path.stem for path in (ROOT / "workflows").glob("*.py")}
    assert modules - {"__init__", "__main__"} - stated == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken, unmade = [], []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists():
            (unmade if target.suffix == ".png" else broken).append(link)
        elif anchor and anchor not in anchors(target):
            broken.append(link)
    assert broken == []
    if unmade:
        pytest.xfail(f"pictures that a run has yet to make: {unmade}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_path_of_some_machine(page):
    assert MACHINE_PATH.findall(page.read_text(encoding="utf-8")) == []


def test_reliability_names_tests_that_exist():
    text = read("reliability.md")
    tests = ROOT / "tests"
    for name in re.findall(r"`((?:unit|integration)/[\w/]+\.py)`", text):
        assert (tests / name).is_file(), name
    code = "".join(path.read_text(encoding="utf-8") for path in tests.rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in code} == set()
