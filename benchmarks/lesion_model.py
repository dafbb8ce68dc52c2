"""A lesion model in the hands of the other scripts: from a prepared case to probability, lesions, scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bids_scseg.inference.bundle import load_bundle
from bids_scseg.inference.predict import load_network, predict_case
from bids_scseg.measure.instances import label_lesions, seed_thresholds
from bids_scseg.training.cases import load_case
from bids_scseg.training.validate import score_candidates


class LesionModel:
    """A bundle with its network, loaded once.

    ``threshold``, ``min_volume_mm3`` and ``seed_threshold`` are the bundle's unless others are given.
    """

    def __init__(self, name, *, threshold=None, min_volume_mm3=None, seed_threshold=None):
        self.bundle = load_bundle(name)
        self.network = load_network(self.bundle)
        self.rules = self.bundle.recipe.inference
        if seed_threshold is not None:  # however many sequences see
            self.rules = replace(self.rules, seed_threshold_alone=0.0)
        self.grid = self.bundle.recipe.grid
        self.threshold = self.bundle.threshold if threshold is None else threshold
        self.min_volume_mm3 = self.rules.min_volume_mm3 if min_volume_mm3 is None else min_volume_mm3
        self.seed_threshold = self.rules.seed_threshold if seed_threshold is None else seed_threshold

    @property
    def sequences(self):
        """Names of the recipe's sequences, in its order."""
        return tuple(self.bundle.recipe.sequence_names)

    def cases(self, prepared):
        """The prepared cases in a folder, one after another."""
        for path in sorted(prepared.rglob("case.json")):
            yield self.case(path.parent)

    def case(self, folder):
        """A prepared case with the recipe's sequences."""
        return load_case(folder, sequences=self.sequences)

    def probability(self, case, *, kept=None):
        """Probability (i, j, k) float32 from the sequences ``kept`` (S,) bool; default: all that it has."""
        kept = case.available if kept is None else kept
        channels = [case.channel(n) for n in range(len(kept))]
        return predict_case(
            self.network,
            self.bundle,
            image=np.stack([np.asarray(case.image[n], np.float32) for n in channels]),
            coverage=np.stack([np.asarray(case.coverage[n]) for n in channels]),
            available=kept.tolist(),
            sequences=case.sequences,
        )

    def label(self, prob, case, *, kept=None):
        """Lesions (i, j, k) numbered from 1, predicted from the sequences ``kept`` (S,); default: all."""
        kept = case.available if kept is None else kept
        channels = [case.channel(int(n)) for n in np.flatnonzero(kept)]
        return label_lesions(
            prob,
            threshold=self.threshold,
            connectivity=self.rules.connectivity,
            min_volume_mm3=self.min_volume_mm3,
            seed_threshold=seed_thresholds(
                np.asarray(case.coverage)[channels],
                threshold=self.seed_threshold,
                alone=self.rules.seed_threshold_alone,
            ),
            voxel_volume=self.grid.spacing_mm**3,
            cord=case.cord,
        )

    def score(self, prob, case):
        """Counts and Dice of a case by the rules ``walsh2024``."""
        point = (self.threshold, self.min_volume_mm3, self.seed_threshold)
        return self.scores(prob, case, [point])[0]

    def scores(self, prob, case, points):
        """The same for several triples of threshold, smallest volume and seed threshold."""
        return score_candidates(
            case, prob, candidates=points, spec=self.rules, grid=self.grid, kept=case.available
        )
