"""All that a bundle says of itself, as plain data and as text (no torch)."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from bids_scseg.inference.bundle import CARD_FILE, FORMAT, NUMERICAL_VERSION, ModelBundle, read_header, sha256
from bids_scseg.inference.facts import CORD_ORIGINS, ModelFacts, as_object, facts_to_json, split_origins
from bids_scseg.preprocess import PREPARATION_VERSION
from bids_scseg.recipe.load import network_to_json, recipe_to_json

UNKNOWN = "not recorded"
# bundles of version 0.1 keep these two as text among their provenance
_OLD_DATA, _OLD_CONFIGURATION = "training data", "configuration"
_WIDTH = 18  # of the column of names
_SHORT = 100  # characters of a value before it is cut, in text


def describe(bundle: ModelBundle) -> dict[str, object]:
    """Everything worth knowing of a bundle, as plain data for JSON.

    Parameters
    ----------
    bundle
        From :func:`~bids_scseg.inference.bundle.load_bundle`; the header of its weights is read, no more.

    Raises
    ------
    DataError
        If the weights are no safetensors file.
    """
    recipe = recipe_to_json(bundle.recipe)
    return {
        "name": bundle.name,
        "path": str(bundle.path),
        "summary": bundle.summary,
        "license": bundle.facts.license,
        "authors": list(bundle.facts.authors),
        "contact": bundle.facts.contact,
        "recipe": {
            key: recipe[key] for key in ("name", "version", "target", "frame", "normalize", "anchors")
        },
        "sequences": _sequences(bundle),
        "grid": recipe["grid"],
        "network": network_to_json(bundle.network),
        "weights": weights_summary(bundle),
        "inference": {
            key: value for key, value in asdict(bundle.recipe.inference).items() if key != "threshold"
        },
        "threshold": {"value": bundle.threshold, **threshold_source(bundle)},
        "preparation": {"trained": bundle.facts.preparation, "program": PREPARATION_VERSION},
        "cord_method": bundle.facts.cord_method,
        "training_data": training_data(bundle),
        "metrics": facts_to_json(bundle.facts).get("metrics", {}),
        "provenance": dict(bundle.provenance),
        "references": recipe["references"],
        "checksums": {
            "weights_sha256": bundle.weights_sha256,
            "inference_sha256": bundle.inference_sha256,
            "card_sha256": sha256(bundle.path / CARD_FILE),
        },
        "versions": {
            "format": FORMAT,
            "numerical": bundle.numerical_version,
            "program_numerical": NUMERICAL_VERSION,
        },
        "card": card_text(bundle),
    }


def _sequences(bundle: ModelBundle) -> list[dict[str, object]]:
    return [
        {
            "name": rule.name,
            "description": rule.description,
            "used": rule.name in bundle.network.sequences,
            "anchor": rule.name in bundle.recipe.anchors,
        }
        for rule in bundle.recipe.sequences
    ]


def weights_summary(bundle: ModelBundle) -> dict[str, object]:
    """Number of parameters and arrays, stored types and size in bytes, from the header alone."""
    header = read_header(bundle.weights)
    return {
        "parameters": sum(math.prod(shape) for _, shape in header.values()),
        "arrays": len(header),
        "types": sorted({kind for kind, _ in header.values()}),
        "bytes": bundle.weights.stat().st_size,
    }


def threshold_source(bundle: ModelBundle) -> dict[str, object]:
    """Where the threshold comes from: ``source`` in words, and the record of its calibration."""
    calibration = dict(bundle.facts.calibration)
    if calibration.get("set") == "none":
        return {"source": "not calibrated", "calibration": calibration}
    if calibration:
        where = f" on {calibration['set']}" if "set" in calibration else ""
        return {"source": f"calibrated{where}", "calibration": calibration}
    candidates = as_object(dict(bundle.provenance).get(_OLD_CONFIGURATION, "")).get("validation")
    stated = candidates.get("thresholds") if isinstance(candidates, dict) else None
    if isinstance(stated, list) and bundle.threshold in stated:
        words = f"{UNKNOWN}; it is among the candidates of its training's configuration"
        return {"source": words, "candidates": stated}
    return {"source": UNKNOWN}


def training_data(bundle: ModelBundle) -> dict[str, object]:
    """Summary of the training data, wherever this bundle keeps it; empty if it has none."""
    if bundle.facts.training_data:
        return dict(bundle.facts.training_data)
    text = dict(bundle.provenance).get(_OLD_DATA, "")
    return as_object(text) or ({"summary": text} if text else {})


def card_text(bundle: ModelBundle) -> str:
    """The model card."""
    return (bundle.path / CARD_FILE).read_text("utf-8", errors="replace")


def notes(bundle: ModelBundle) -> tuple[str, ...]:
    """What is not recorded or differs from this program; one sentence each."""
    facts: ModelFacts = bundle.facts
    found = []
    if facts.preparation is None:
        found.append("the version of the preparation that it was trained on is not recorded")
    elif facts.preparation != PREPARATION_VERSION:
        found.append(
            f"it was trained on version {facts.preparation} of the preparation; this program prepares by "
            f"version {PREPARATION_VERSION}"
        )
    if bundle.numerical_version != NUMERICAL_VERSION:
        found.append(
            f"it was saved under numerical version {bundle.numerical_version} of inference; this program has "
            f"{NUMERICAL_VERSION}"
        )
    # a finder works on single images: cords are what it gives, not what it gets
    if facts.cord_method is None and bundle.recipe.frame == "centerline":
        found.append("the origin of the cord masks that it was trained with is not recorded")
    if facts.license is None:
        found.append("no licence of the weights is recorded")
    return tuple(found)


def describe_text(bundle: ModelBundle) -> str:
    """The same for people: lines of names and values, then the card."""
    lines = [f"{name:<{_WIDTH}}{value}" for name, value in _rows(bundle)]
    lines += [f"{'note':<{_WIDTH}}{note}" for note in notes(bundle)]
    return printable("\n".join([*lines, "", card_text(bundle).strip(), ""]))


def printable(text: str) -> str:
    """Text without control characters but line ends and tabs: a model's words do not steer a terminal."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _rows(bundle: ModelBundle) -> Iterator[tuple[str, str]]:
    recipe, spec, rules = bundle.recipe, bundle.network, bundle.recipe.inference
    weights = weights_summary(bundle)
    yield "model", bundle.name
    yield "folder", str(bundle.path)
    yield "says", bundle.summary
    yield "licence", bundle.facts.license or UNKNOWN
    yield "authors", "; ".join(bundle.facts.authors) or UNKNOWN
    yield "contact", bundle.facts.contact or UNKNOWN
    yield "recipe", f"{recipe.name}, version {recipe.version}: {recipe.target}, frame {recipe.frame}"
    for rule in recipe.sequences:
        unused = "" if rule.name in spec.sequences else " (not used by the network)"
        yield "sequence", f"{rule.name}: {rule.description}{unused}"
    yield "anchors", ", ".join(recipe.anchors)
    yield "grid", _pairs(asdict(recipe.grid))
    yield "intensities", recipe.normalize
    yield "network", _pairs({k: v for k, v in network_to_json(spec).items() if k != "sequences"})
    yield (
        "parameters",
        f"{weights['parameters']:,} in {weights['arrays']} arrays, {_pairs(weights['types'])}, "
        f"{weights['bytes']:,} bytes",
    )
    yield "inference", _pairs({"patch_vox": rules.patch_vox, "overlap": rules.overlap, "flips": rules.flips})
    yield "threshold", f"{bundle.threshold} ({threshold_source(bundle)['source']})"
    for key, value in bundle.facts.calibration.items():
        yield "  calibration", f"{key}: {_pairs(value)}"
    one = (
        f", {rules.seed_threshold_alone} where one sequence alone sees" if rules.seed_threshold_alone else ""
    )
    yield "seed threshold", f"{rules.seed_threshold or 'none'}{one}"
    yield "smallest lesion", f"{rules.min_volume_mm3} mm³, connectivity {rules.connectivity}"
    yield from _facts_rows(bundle)
    yield "weights SHA-256", bundle.weights_sha256
    yield "output SHA-256", bundle.inference_sha256


def _facts_rows(bundle: ModelBundle) -> Iterator[tuple[str, str]]:
    facts = bundle.facts
    trained = UNKNOWN if facts.preparation is None else f"version {facts.preparation}"
    yield "preparation", f"{trained} (this program: version {PREPARATION_VERSION})"
    origins = split_origins(facts.cord_method)
    yield from (("cord masks", f"{origin}: {CORD_ORIGINS[origin]}") for origin in origins)
    if not origins:
        yield "cord masks", UNKNOWN
    data = training_data(bundle)
    yield from (("training data", f"{key}: {_cut(value)}") for key, value in data.items())
    if not data:
        yield "training data", UNKNOWN
    yield from (("metrics", f"{name}: {_pairs(values)}") for name, values in facts.metrics.items())
    if not facts.metrics:
        yield "metrics", f"{UNKNOWN}; see the card"
    others = ((key, value) for key, value in bundle.provenance if key != _OLD_DATA)
    yield from (("made", f"{key}: {_cut(value)}") for key, value in others)


def _pairs(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_pairs(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_pairs(item) for item in value) + ")"
    return "undefined" if value is None else str(value)


def _cut(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}… (all of it: --json)"
