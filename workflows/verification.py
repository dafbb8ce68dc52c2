"""Verification after a run and later: each session's verdict, and one of all rebuilt from those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bids_scseg import files
from bids_scseg.bids import checksums
from bids_scseg.bids.validator import Judgement, validate
from bids_scseg.bids.verify import Problem, Verification, dataset_links, total, verify_owner
from bids_scseg.bids.write import rebuild, write_json
from bids_scseg.errors import ScsegError

FOLDER = "logs/verification"
MERGED = "logs/verification.json"
LOCK = "logs/.verification.lock"
MAX_VALIDATED = 200  # sessions up to which the validator runs after every run (ours: about a minute)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All that was found about an output folder."""

    parts: tuple[Verification, ...]
    validator: Judgement

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; a validator that was not run says nothing."""
        return self.validator.state != "failed" and all(part.passed for part in self.parts)

    def to_json(self) -> dict[str, object]:
        """Plain data for JSON."""
        whole = total(self.parts).to_json()
        verdict = "passed" if self.passed else "failed"
        owners = [part.owner for part in self.parts if part.owner.startswith("sub-")]
        return {
            **whole, "owner": "all", "verdict": verdict, "sessions": len(owners),
            "validator": self.validator.to_json(),
        }  # fmt: skip

    def __str__(self) -> str:
        whole = total(self.parts)
        words = f"{whole.files} files, {whole.sources} sources and {whole.lattices} lattices verified"
        state = self.validator.state
        words += f"; BIDS validator: {state}" + (f" ({self.validator.why})" if self.validator.why else "")
        return words if self.passed else f"{words}; {len(self.problems)} problems"

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each thing that is wrong."""
        found = [str(problem) for part in self.parts for problem in part.problems]
        return (*found, *(f"BIDS validator: {message}" for message in self.validator.messages))


def verify_output(out: Path, *, raw: Path | None = None, validator: bool = True) -> Verdict:
    """Verify a whole output folder; nothing is written.

    Parameters
    ----------
    out
        The output folder.
    raw
        Where the raw dataset is now, if it was moved.
    validator
        Whether the BIDS validator is run where it is installed.

    Raises
    ------
    MissingInputError, DataError
        If it is no output folder of this program.
    """
    links, broken = dataset_links(out, raw=raw)
    owners = dict.fromkeys([checksums.DATASET, *_finished(out), *checksums.owners(out)])
    parts = [_with(verify_owner(out, owner, links), broken) for owner in owners]
    judgement = validate(out) if validator else Judgement(state="not run", why="not asked for")
    return Verdict(parts=tuple(parts), validator=judgement)


def verify_run(out: Path, labels: Iterable[str]) -> Verdict:
    """Verify the sessions that a run has finished, and write the verdict to the logs.

    Parameters
    ----------
    out
        The output folder.
    labels
        Sessions that are done; those of other runs keep their verdicts.

    Raises
    ------
    OutputError
        If the verdict cannot be written.
    """
    mine = list(labels)
    links, broken = dataset_links(out)
    parts = [_with(verify_owner(out, owner, links), broken) for owner in (checksums.DATASET, *mine)]
    verdict = Verdict(parts=tuple(parts), validator=_validate_after(out, mine))
    for part in parts:
        validated = {"validator": verdict.validator.to_json()} if part.owner == checksums.DATASET else {}
        write_json(out, f"{FOLDER}/{part.owner}.json", {**part.to_json(), **validated})
    write_merged(out)
    return verdict


def write_merged(out: Path) -> None:
    """Rebuild ``logs/verification.json`` from all sessions' verdicts, or let another run at it do so."""
    rebuild(out, LOCK, lambda: write_json(out, MERGED, _merged(list(_read_parts(out)))))


def _merged(parts: list[Mapping[str, object]]) -> dict[str, object]:
    failed = [str(part.get("owner")) for part in parts if part.get("verdict") != "passed"]
    validator = next((part["validator"] for part in parts if "validator" in part), None)
    state = validator.get("state") if isinstance(validator, dict) else "not run"
    counts = {key: sum(_count(part, key) for part in parts) for key in ("files", "sources", "lattices")}
    return {
        "verdict": "failed" if failed or state == "failed" else "passed",
        "sessions": sum(str(part.get("owner")).startswith("sub-") for part in parts),
        **counts,
        "failed": failed,
        "validator": validator,
    }


def _count(part: Mapping[str, object], key: str) -> int:
    value = part.get(key)
    return value if isinstance(value, int) else 0


def _read_parts(out: Path) -> Iterator[Mapping[str, object]]:
    for path in sorted((out / FOLDER).glob("[!.]*.json")):
        with suppress(ScsegError):
            data = files.read_json(path)
            if isinstance(data, dict):
                yield data


def _with(part: Verification, broken: tuple[Problem, ...]) -> Verification:
    """The root's verification tells of links that lead nowhere."""
    if part.owner != checksums.DATASET or not broken:
        return part
    return Verification(owner=part.owner, files=part.files, problems=(*part.problems, *broken))


def _finished(out: Path) -> list[str]:
    """Sessions that have a summary, whether or not they have checksums."""
    found = [*out.glob("sub-*/anat/*_summary.json"), *out.glob("sub-*/ses-*/anat/*_summary.json")]
    return sorted(path.name.removesuffix("_summary.json") for path in found)


def _validate_after(out: Path, mine: list[str]) -> Judgement:
    """Run the validator, unless others are writing, or the folder is large and mostly of other runs."""
    others = {owner for owner in checksums.owners(out) if owner.startswith("sub-")} - set(mine)
    if len(others) > MAX_VALIDATED:
        return Judgement(state="not run", why="many sessions of other runs; use scseg verify")
    if any(_is_held(path) for path in (out / "logs").glob(".sub-*.lock")):
        return Judgement(state="not run", why="another run is writing; use scseg verify")
    return validate(out)


def _is_held(path: Path) -> bool:
    with suppress(OSError):
        return files.is_held(path)
    return False
