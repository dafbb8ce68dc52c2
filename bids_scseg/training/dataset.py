"""Patches drawn from prepared cases: which sequences are shown, where, and what counts there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError
from bids_scseg.training.acquisition import Scene
from bids_scseg.training.appearance import add_grey, change_surroundings, darken_fluid
from bids_scseg.training.augment import augment
from bids_scseg.training.cases import TrainingCase, kept_sequences
from bids_scseg.training.config import AugmentConfig, PaintConfig, SamplingConfig
from bids_scseg.training.paint import SPACING_MM, exchange, paint
from bids_scseg.training.sample import IGNORE, Sample
from bids_scseg.training.summary import summarize

Rng = np.random.Generator
Places = tuple[npt.NDArray[np.int32], ...]
NO_PAINT = PaintConfig()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedCases:
    """Patches along S-I from prepared cases.

    Attributes
    ----------
    cases
        Training cases; each has one of ``sampling.sequences`` at least.
    sampling, augmentation, painting
        How patches are drawn and changed.
    seed
        Example ``n`` depends on ``(seed, n)`` only.
    places
        Voxels of each lesion by case and lesion, found when they are first needed.
    """

    cases: Sequence[TrainingCase]
    sampling: SamplingConfig
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    painting: PaintConfig = field(default_factory=PaintConfig)
    seed: int = 0
    places: dict[int, Places] = field(default_factory=dict, repr=False)

    def sample(self, index: int) -> Sample:
        """Example number ``index``."""
        rng = np.random.default_rng([self.seed, index])
        number = int(rng.integers(len(self.cases)))
        return draw_patch(
            rng,
            self.cases[number],
            self.sampling,
            self.augmentation,
            painting=self.painting,
            places=self._places(number),
        )

    def _places(self, number: int) -> Places:
        if number not in self.places:
            self.places[number] = lesion_places(self.cases[number])
        return self.places[number]

    def summary(self) -> dict[str, object]:
        """What the source holds, as :func:`bids_scseg.training.summary.summarize` says it."""
        return summarize(self.cases)


def draw_patch(
    rng: Rng,
    case: TrainingCase,
    sampling: SamplingConfig,
    augmentation: AugmentConfig,
    *,
    places: Places,
    painting: PaintConfig = NO_PAINT,
) -> Sample:
    """One augmented patch of a case; ``places`` are those of :func:`lesion_places`."""
    available = draw_alone(rng, kept_sequences(case, sampling.sequences), sampling, names=case.sequences)
    if sampling.by_patch:
        # the place first: a sequence that is kept but does not reach it would teach nothing
        place = draw_place(rng, case, sampling, kept=available, places=places)
        here = available & reaching(case, place, sampling.patch_vox)
        kept = draw_sequences(rng, here if here.any() else available, sampling)
    else:
        kept = draw_sequences(rng, available, sampling)
        place = draw_place(rng, case, sampling, kept=kept, places=places)
    patch = crop(case, place, sampling.patch_vox, kept=kept)
    order = np.arange(len(case.sequences))
    if sampling.exchange:
        patch, order = exchange(patch, rng, probability=sampling.exchange, sequences=case.sequences)
    painted = bool(painting.probability or painting.grey or painting.surroundings or painting.dark_fluid)
    scene = None
    if painted or augmentation.renormalise or augmentation.physical:
        scene = _scene(case, place, order, patch_vox=sampling.patch_vox, augmentation=augmentation)
    if painted and scene:
        cord, names = scene.cord, case.sequences
        patch = add_grey(patch, cord, rng, config=painting, sequences=names, spacings=scene.spacings)
        patch = change_surroundings(patch, cord, rng, probability=painting.surroundings)
        patch = darken_fluid(patch, cord, rng, probability=painting.dark_fluid, sequences=names)
        patch = paint(patch, cord, rng, painting, sequences=names, spacings=scene.spacings)
    patch = augment(patch, rng, augmentation, scene=scene)
    return covered_only(patch) if sampling.by_patch else patch


def lesion_places(case: TrainingCase) -> Places:
    """Voxels (N, 3) of each lesion, lesions and voxels in ascending order."""
    label = np.asarray(case.label)
    return tuple(np.argwhere(label == lesion).astype(np.int32) for lesion in case.lesions)


def shown_places(case: TrainingCase, places: Places, *, kept: npt.NDArray[np.bool_]) -> Places:
    """Of lesions that count with the sequences ``kept``, the voxels that one of these covers."""
    names = {case.sequences[n] for n in np.flatnonzero(kept)}
    channels = [case.channel(int(number)) for number in np.flatnonzero(kept)]
    out = []
    for voxels in places:
        where = tuple(voxels.T)
        lesion = int(case.label[tuple(voxels[0])])
        covered = np.zeros(len(voxels), bool)
        for channel in channels:
            covered |= case.coverage[channel][where]
        if covered.any() and _counts(case, lesion, names):
            out.append(voxels[covered])
    return tuple(out)


def covered_only(sample: Sample) -> Sample:
    """The sample with sequences that cover none of its voxels counted as missing; one always stays."""
    here = sample.available & sample.coverage.any(axis=(1, 2, 3))
    return replace(sample, available=here) if here.any() else sample


def reaching(
    case: TrainingCase, place: tuple[int, int, int], patch: tuple[int, int, int]
) -> npt.NDArray[np.bool_]:
    """(S,) bool: sequences with data at the height of the place, within half a patch's length of it."""
    size = case.label.shape
    heights = slice(max(place[2] - patch[2] // 4, 0), place[2] + patch[2] // 4 + 1)
    column = (size[0] // 2, size[1] // 2, heights)
    return np.array(
        [bool(case.coverage[case.channel(n)][column].any()) for n in range(len(case.sequences))], bool
    )


def draw_alone(
    rng: Rng, available: npt.NDArray[np.bool_], sampling: SamplingConfig, *, names: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """(S,) bool: by ``alone_share`` one of ``alone`` that is available, by itself; else all available."""
    if not sampling.alone_share or rng.random() >= sampling.alone_share:
        return available
    choice = [n for n in np.flatnonzero(available) if names[n] in sampling.alone]
    if not choice:
        return available
    kept = np.zeros(available.shape, bool)
    kept[choice[int(rng.integers(len(choice)))]] = True
    return kept


def draw_sequences(
    rng: Rng, available: npt.NDArray[np.bool_], sampling: SamplingConfig
) -> npt.NDArray[np.bool_]:
    """(S,) bool: all available sequences or, by ``sequence_dropout``, a non-empty subset of them."""
    if rng.random() >= sampling.sequence_dropout:
        return available.copy()
    names = np.flatnonzero(available)
    # the number kept is uniform, so that single sequences are seen as often as full sets
    most = min(len(names), sampling.dropout_keeps or len(names))
    count = int(rng.integers(1, most + 1))
    kept = np.zeros(available.shape, bool)
    kept[rng.permutation(names)[:count]] = True
    return kept


def draw_place(
    rng: Rng,
    case: TrainingCase,
    sampling: SamplingConfig,
    *,
    kept: npt.NDArray[np.bool_],
    places: Places | None = None,
) -> tuple[int, int, int]:
    """Centre of a patch: on a lesion (each equally likely) or anywhere that a kept sequence covers.

    With ``sampling.shown_lesions``, on lesions that count with the kept sequences alone. ``places`` saves
    searching the lesions' voxels anew (:func:`lesion_places`).
    """
    size = case.label.shape
    places = lesion_places(case) if places is None else places
    on_lesion = rng.random() < sampling.foreground
    if on_lesion and sampling.shown_lesions:
        places = shown_places(case, places, kept=kept)
    if on_lesion and places:
        voxels = places[int(rng.integers(len(places)))]
        i, j, k = (int(n) for n in voxels[rng.integers(len(voxels))])
        return i, j, k + int(rng.integers(-sampling.patch_vox[2] // 4, sampling.patch_vox[2] // 4 + 1))
    column = size[0] // 2, size[1] // 2
    middle = np.zeros(size[2], bool)
    for number in np.flatnonzero(kept):
        middle |= case.coverage[case.channel(int(number))][column]
    slices = np.flatnonzero(middle) if middle.any() else np.arange(size[2])
    return *column, int(slices[rng.integers(len(slices))])


def crop(
    case: TrainingCase,
    place: tuple[int, int, int],
    patch: tuple[int, int, int],
    *,
    kept: npt.NDArray[np.bool_],
) -> Sample:
    """The patch round a place, shifted to lie inside the case; what is smaller than a patch is padded.

    Voxels that no kept sequence covers, and lesions that none of them shows, do not count (255).

    Raises
    ------
    DataError
        If the image has values there that are not finite.
    """
    inner, outer = _window(place, patch, case.label.shape)
    channels = len(case.sequences)
    image, coverage = np.zeros((channels, *patch), np.float32), np.zeros((channels, *patch), bool)
    for channel in np.flatnonzero(kept):
        stored = case.channel(int(channel))
        image[(channel, *outer)] = case.image[stored][inner]
        coverage[(channel, *outer)] = case.coverage[stored][inner]
    if not np.isfinite(image).all():
        raise DataError(
            "image with values that are not finite", file=case.folder or case.name, expected="finite values",
            remedy="prepare the case again",
        )  # fmt: skip
    instances = np.zeros(patch, np.uint8)
    instances[outer] = case.label[inner]
    label = _classes(case, instances, kept=kept)
    label[~coverage.any(axis=0)] = IGNORE
    return Sample(image=image, coverage=coverage, label=label, available=kept.copy())


def crop_cord(
    case: TrainingCase, place: tuple[int, int, int], patch: tuple[int, int, int]
) -> npt.NDArray[np.float32]:
    """Share of cord in the same patch, 0 in what is padded (DataError if the case has none)."""
    if case.cord is None:
        raise DataError(
            "no share of cord", file=case.folder or case.name, expected="cord_share.npy",
            remedy="prepare the cases again, or set all of paint and augment.renormalise and physical to 0",
        )  # fmt: skip
    inner, outer = _window(place, patch, case.label.shape)
    out = np.zeros(patch, np.float32)
    out[outer] = case.cord[inner]
    return out


def _scene(
    case: TrainingCase,
    place: tuple[int, int, int],
    order: npt.NDArray[np.intp],
    *,
    patch_vox: tuple[int, int, int],
    augmentation: AugmentConfig,
) -> Scene:
    """What is known of a patch beside its images, whose channels came from ``order`` (S,) of the case's."""
    rule = (case.made.rules or {}).get("normalize", "cord")  # cases of unknown making are let pass
    if rule not in ("cord", "cord-ratio") and (augmentation.renormalise or augmentation.physical):
        raise DataError(
            f"prepared with normalize {rule!r}", file=case.folder or case.name,
            expected="'cord' or 'cord-ratio'",
            remedy="set augment.renormalise to false and augment.physical to 0",
        )  # fmt: skip
    return Scene(
        cord=crop_cord(case, place, patch_vox),
        spacings=[case.spacings.get(case.sequences[n], (SPACING_MM,) * 3) for n in order],
        normalize="cord-ratio" if rule == "cord-ratio" else "cord",
    )


def _window(
    place: tuple[int, int, int], patch: tuple[int, int, int], shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a patch is taken from in the case, and where that lies in the patch."""
    source, target = [], []
    for centre, want, have in zip(place, patch, shape, strict=True):
        first = int(np.clip(centre - want // 2, 0, max(have - want, 0)))
        length = min(want, have)
        before = (want - length) // 2
        source.append(slice(first, first + length))
        target.append(slice(before, before + length))
    return tuple(source), tuple(target)


def _classes(
    case: TrainingCase, instances: npt.NDArray[np.uint8], *, kept: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    table = np.ones(256, np.uint8)
    table[0], table[IGNORE] = 0, IGNORE
    names = {case.sequences[n] for n in np.flatnonzero(kept)}
    for lesion in case.visible:
        if 0 < lesion < IGNORE and not _counts(case, lesion, names):
            table[lesion] = IGNORE
    return np.asarray(table[instances])


def _counts(case: TrainingCase, lesion: int, names: set[str]) -> bool:
    """Whether a lesion counts where these sequences are shown: one of them shows it, or that is not known."""
    return lesion not in case.visible or bool(names & {*case.visible[lesion], *case.faint.get(lesion, ())})
