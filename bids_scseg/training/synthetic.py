"""Examples from synthetic sessions that are drawn, prepared and forgotten while a training runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_scseg.errors import DataError
from bids_scseg.files import lock
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.preprocess.labels import labels_to_prepared
from bids_scseg.preprocess.prepare import prepare_session
from bids_scseg.processes import end_with_parent, worker_pool
from bids_scseg.recipe.model import Recipe
from bids_scseg.space.geometry import Slab
from bids_scseg.synth import GENERATOR_VERSION
from bids_scseg.synth.memory import SyntheticSession, draw_session
from bids_scseg.synth.scenario import ANCHORS
from bids_scseg.training.arms import shown_sampling
from bids_scseg.training.cases import LESIONS_FILE, TrainingCase, load_case
from bids_scseg.training.config import AugmentConfig, DataConfig, PaintConfig, SamplingConfig, TrainingConfig
from bids_scseg.training.dataset import Places, draw_patch, lesion_places
from bids_scseg.training.sample import Sample
from bids_scseg.training.session import jitter_centerlines
from bids_scseg.training.summary import summarize

HELD_OUT_FIRST = 10**9  # number of the first held-out session: no training gets there
JITTER_STREAM = 2  # beside the session's own number in its seeds; 0 and 1 are the generator's
WAIT_S = 900.0  # for a session that another process makes, a hundred times what one takes; ours
POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Prepared synthetic sessions by number, made where they are absent; travels to worker processes.

    Attributes
    ----------
    folder
        Where they lie, a folder each.
    recipe
        What they are prepared for; all of its sequences are drawn.
    seed
        Session ``n`` depends on ``(seed, n)`` only.
    jitter_mm
        Standard deviation of the errors of centerlines that a finder would make.
    """

    folder: Path
    recipe: Recipe
    seed: int
    jitter_mm: float

    def path(self, number: int) -> Path:
        """Folder of a session, there or not."""
        return self.folder / f"{number:010d}"

    def ensure(self, number: int) -> Path:
        """Folder of a session that is there; who comes first makes it, others wait."""
        path = self.path(number)
        if not (path / "case.json").is_file():
            with lock(self.folder / f".{path.name}.lock", wait_s=WAIT_S, what="nobody finishes a session"):
                if not (path / "case.json").is_file():
                    self._make(number, path)
        return path

    def oldest(self, default: int) -> int:
        """Smallest number that is there below the held-out ones."""
        there = [int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()]
        return min((number for number in there if number < HELD_OUT_FIRST), default=default)

    def retire(self, below: int) -> None:
        """Remove sessions of smaller numbers; patches of them that are being drawn stay readable."""
        for path in sorted(self.folder.glob("[0-9]*")):
            if path.name.isdigit() and int(path.name) < below:
                gone = path.with_name(f".{path.name}.{os.getpid()}.old")
                with suppress(OSError):  # another process was faster
                    path.rename(gone)
                    shutil.rmtree(gone, ignore_errors=True)
                    (self.folder / f".{path.name}.lock").unlink()

    def sweep(self) -> None:
        """Remove what killed processes left half made; nobody else may be at work in the folder."""
        for ending in ("new", "old"):
            for path in self.folder.glob(f".*.{ending}"):
                shutil.rmtree(path, ignore_errors=True)

    def _make(self, number: int, path: Path) -> None:
        draft = path.with_name(f".{path.name}.{os.getpid()}.new")
        shutil.rmtree(draft, ignore_errors=True)
        session = draw_session(self.seed, number, sequences=self.recipe.sequence_names)
        rng = np.random.default_rng([self.seed, number, JITTER_STREAM])
        write_session(session, self, draft, rng=rng)
        draft.rename(path)


def write_session(
    session: SyntheticSession, sessions: Sessions, folder: Path, *, rng: np.random.Generator
) -> None:
    """Prepare a session in memory and write it as a training case."""
    case, _ = prepare_session(
        session.images,
        session.cords,
        sessions.recipe,
        register=False,  # drawn as slabs lie after a registration
        adjust=lambda geometry: jitter_centerlines(geometry, rng, sd_mm=sessions.jitter_mm),
    )
    if case.geometry is None:
        raise DataError("the prepared case has no geometry", file=session.label)
    slab = Slab(key=case.geometry.anchor, index=0, file="truth", grid=session.lesions_grid)
    label = labels_to_prepared(case.geometry, session.lesions, slab).astype(np.uint8)
    name = f"synthetic-{sessions.seed}-{session.label}"
    replace(case, case=name, subject=name).save(folder, dtype=np.float16)
    np.save(folder / "label.npy", label, allow_pickle=False)
    shown = {
        str(lesion): {"visible": list(session.visible[lesion]), "faint": list(session.faint[lesion])}
        for lesion in session.visible
    }
    (folder / LESIONS_FILE).write_text(json.dumps(shown), encoding="utf-8")
    record = folder / "case.json"
    facts = json.loads(record.read_text(encoding="utf-8"))
    facts |= {"preparation": PREPARATION_VERSION, "cord_method": cord_method(sessions.jitter_mm)}
    record.write_text(json.dumps(facts), encoding="utf-8")


def cord_method(jitter_mm: float) -> str:
    """Origin of the cords of synthetic cases, as a bundle records it."""
    return "jittered-masks" if jitter_mm > 0 else "masks"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DrawnSessions:
    """Patches from a few sessions at a time, which make room for new ones as the training goes on.

    Example ``n`` is a patch of one of the sessions ``n // patches`` to ``n // patches + live - 1``, so it
    depends on seeds and ``n`` only, whoever draws it and whatever was drawn before.

    Attributes
    ----------
    sessions
        Where sessions come from.
    data
        How many are live, and how many patches each gives on average.
    sampling, augmentation, painting
        How patches are drawn and changed.
    sequences
        Those of the network.
    seed
        Of the patches.
    open_
        Sessions that this process has open, with the voxels of their lesions.
    """

    sessions: Sessions
    data: DataConfig
    sampling: SamplingConfig
    sequences: tuple[str, ...]
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    painting: PaintConfig = field(default_factory=PaintConfig)
    seed: int = 0
    open_: dict[int, tuple[TrainingCase, Places]] = field(default_factory=dict, repr=False)

    def first(self, index: int) -> int:
        """Number of the oldest session that is live at an example."""
        return index // self.data.patches

    def sample(self, index: int) -> Sample:
        """Example number ``index``; waits for its session where need be."""
        rng = np.random.default_rng([self.seed, index])
        first = self.first(index)
        number = first + int(rng.integers(self.data.live))
        if number not in self.open_:
            self._forget(first)
            case = self.case(number)
            self.open_[number] = case, lesion_places(case)
        case, places = self.open_[number]
        return draw_patch(rng, case, self.sampling, self.augmentation, painting=self.painting, places=places)

    def case(self, number: int) -> TrainingCase:
        """A session as a case, made where it is absent."""
        return load_case(self.sessions.ensure(number), sequences=self.sequences)

    def summary(self) -> dict[str, object]:
        """What the first live sessions hold, as :func:`bids_scseg.training.summary.summarize` says it."""
        return summarize([self.case(number) for number in range(self.data.live)])

    def _forget(self, first: int) -> None:
        for number in [number for number in self.open_ if number < first]:
            del self.open_[number]
        # other processes draw examples with smaller numbers still: as many as their queues are long
        behind = 1 + 8 * max(self.sampling.workers, 1) * self.sampling.batch // self.data.patches
        self.sessions.retire(first - behind)


def check_sequences(recipe: Recipe) -> None:
    """Refuse a recipe with sequences that the generator does not draw (DataError)."""
    strangers = [name for name in recipe.sequence_names if name not in ANCHORS]
    if strangers:
        raise DataError(
            f"recipe {recipe.name} has {strangers}",
            expected=f"sequences among {list(ANCHORS)}, which synthetic sessions have",
            remedy="train on prepared cases",
        )


def open_sessions(config: TrainingConfig, recipe: Recipe, *, out: Path) -> DrawnSessions:
    """The source of a training on synthetic sessions; they lie in ``out/sessions``."""
    check_sequences(recipe)
    folder = out / "sessions"
    folder.mkdir(parents=True, exist_ok=True)
    sessions = Sessions(folder=folder, recipe=recipe, seed=config.data.seed, jitter_mm=config.data.jitter_mm)
    return DrawnSessions(
        sessions=sessions,
        data=config.data,
        sampling=shown_sampling(config, recipe),
        sequences=recipe.network.sequences,
        augmentation=config.augment,
        painting=config.paint,
        seed=config.seed,
    )


def make_all(sessions: Sessions, numbers: Sequence[int], *, workers: int) -> None:
    """Make sessions that are absent, several at once."""
    absent = [number for number in numbers if not (sessions.path(number) / "case.json").is_file()]
    if workers <= 1 or len(absent) < 2:
        for number in absent:
            sessions.ensure(number)
        return
    with worker_pool(min(workers, len(absent))) as pool:
        for _ in pool.map(sessions.ensure, absent):
            pass


@contextmanager
def generating(source: DrawnSessions, *, first: int) -> Iterator[None]:
    """Processes beside the training that make sessions before they are needed; they end with it."""
    context = multiprocessing.get_context("spawn")
    count = source.data.generators
    ahead = source.data.live + max(source.data.live // 2, count)
    makers = [
        context.Process(
            target=_generator, args=(source.sessions, first, turn, count, ahead, os.getpid()), daemon=True
        )
        for turn in range(count)
    ]
    for maker in makers:
        maker.start()
    try:
        yield
    finally:
        for maker in makers:
            maker.terminate()
        for maker in makers:
            maker.join()


def _generator(*arguments: Any) -> None:
    """:func:`generate` in a process that the terminal's Ctrl-C does not reach: the training ends it."""
    end_with_parent()
    generate(*arguments)


def generate(sessions: Sessions, first: int, turn: int, count: int, ahead: int, parent: int) -> None:
    """Make every ``count``-th session, ``ahead`` of the oldest that is there, while the parent lives."""
    number = first + turn
    while os.getppid() == parent:
        oldest = sessions.oldest(first)
        if number < oldest:
            number += count
        elif number < oldest + ahead:
            sessions.ensure(number)
            number += count
        else:
            time.sleep(POLL_S)


def facts_of(source: DrawnSessions, *, examples: int) -> dict[str, object]:
    """What a bundle should say of such training data, of which ``examples`` are used up."""
    data = source.data
    return {
        "generator": GENERATOR_VERSION,
        "seed": data.seed,
        "sessions": source.first(max(examples - 1, 0)) + data.live,
        "live sessions": data.live,
        "patches of each": data.patches,
        "jitter_mm": data.jitter_mm,
    }
