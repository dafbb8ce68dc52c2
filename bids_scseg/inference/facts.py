"""What a bundle records of its training in fields that programs can read (no torch)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bids_scseg.errors import DataError

#: Where the cord masks came from that the training cases were prepared with. Several are joined by ``+``.
CORD_ORIGINS: Mapping[str, str] = {
    "masks": "cord masks drawn by hand, or true ones",
    "jittered-masks": "such masks with errors added, in place of a finder's",
    "cord-finder": "the built-in network",
    "sct": "the Spinal Cord Toolbox",
}
Metrics = Mapping[str, Mapping[str, float | int | str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known about a model's making; None or empty: not recorded.

    Attributes
    ----------
    preparation
        :data:`bids_scseg.preprocess.PREPARATION_VERSION` of the training cases.
    cord_method
        Origins of their cord masks: one of :data:`CORD_ORIGINS`, or several as :func:`join_origins` has them.
    license
        SPDX expression of the weights' licence, such as ``CC-BY-4.0`` or ``LicenseRef-ours``.
    authors
        Who made the model: one line of text each.
    contact
        Whom to ask: a mail address or a page, one line of text.
    training_data
        Summary of the training data: any JSON object.
    metrics
        Name of a set of cases (``validation``, ``test``) to metrics by name; None where undefined.
    calibration
        How the threshold was chosen: any JSON object; ``set``, ``rule`` and ``subjects`` are customary.
    """

    preparation: int | None = None
    cord_method: str | None = None
    license: str | None = None
    authors: tuple[str, ...] = ()
    contact: str | None = None
    training_data: Mapping[str, object] = field(default_factory=dict, hash=False)
    metrics: Metrics = field(default_factory=dict, hash=False)
    calibration: Mapping[str, object] = field(default_factory=dict, hash=False)


def facts_to_json(facts: ModelFacts) -> dict[str, object]:
    """Plain data for JSON, without what is not recorded; numbers that are not finite become null.

    Raises
    ------
    DataError
        If the licence is no SPDX expression, or :func:`facts_from_json` would refuse the result.
    """
    given: dict[str, object] = {
        "preparation": facts.preparation,
        "cord_method": facts.cord_method,
        "license": None if facts.license is None else spdx(facts.license),
        "authors": list(facts.authors),
        "contact": facts.contact,
        "training_data": _plain(facts.training_data),
        "metrics": _plain(facts.metrics),
        "calibration": _plain(facts.calibration),
    }
    stated = {key: value for key, value in given.items() if value not in (None, {}, [])}
    facts_from_json(stated)
    return stated


def facts_from_json(data: Mapping[str, object], *, file: object = None) -> ModelFacts:
    """Read what :func:`facts_to_json` wrote.

    Raises
    ------
    DataError
        For unknown keys and wrong types.
    """
    unknown = sorted(set(data) - set(_KINDS))
    if unknown:
        raise DataError(f"unknown key {unknown[0]!r} in facts", file=file, expected=f"some of {list(_KINDS)}")
    for key, value in data.items():
        if type(value) is not _KINDS[key]:
            raise _refusal(f"facts.{key} is {value!r:.60}", _KINDS[key].__name__, file=file)
    values: dict[str, Any] = dict(data)
    method = values.get("cord_method")
    if method is not None and not set(method.split("+")) <= set(CORD_ORIGINS):
        expected = f"one of {list(CORD_ORIGINS)}, or several joined by +"
        raise _refusal(f"facts.cord_method is {method!r:.60}", expected, file=file)
    _check_metrics(values.get("metrics", {}), file=file)
    for key, lines in (("authors", values.get("authors", [])), ("contact", [values.get("contact", "-")])):
        for line in lines:
            check_line(line, where=f"facts.{key}", file=file)
    return ModelFacts(**{**values, "authors": tuple(values.get("authors", ()))})


_KINDS: dict[str, type] = {
    "preparation": int,
    "cord_method": str,
    "license": str,
    "authors": list,
    "contact": str,
    "training_data": dict,
    "metrics": dict,
    "calibration": dict,
}


def join_origins(origins: Iterable[str]) -> str | None:
    """Origins of cord masks as one text, such as ``cord-finder+masks``; None without any."""
    return "+".join(sorted(set(origins))) or None


def split_origins(method: str | None) -> tuple[str, ...]:
    """The single origins in what :func:`join_origins` wrote."""
    return tuple(method.split("+")) if method else ()


def spdx(expression: str) -> str:
    """An SPDX licence expression in its canonical spelling.

    Raises
    ------
    DataError
        If it is none.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return str(canonicalize_license_expression(expression))
    except InvalidLicenseExpression as error:
        raise DataError(
            f"licence {expression!r:.60}",
            expected="an SPDX expression such as CC-BY-4.0 or LicenseRef-ours",
            remedy="see spdx.org/licenses for the names",
        ) from error


def check_line(value: object, *, where: str, file: object = None) -> None:
    """Refuse what is not one line of printable text (DataError)."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise DataError(f"{where} is {value!r:.60}", file=file, expected="one line of printable text")


def _check_metrics(metrics: Mapping[str, object], *, file: object) -> None:
    for name, values in metrics.items():
        if not isinstance(values, dict):
            raise _refusal(f"facts.metrics.{name} is {values!r:.60}", "metrics by name", file=file)
        for key, value in values.items():
            if not isinstance(value, int | float | str | None):
                raise _refusal(f"facts.metrics.{name}.{key} is {value!r:.60}", "a number or text", file=file)


def _refusal(found: str, expected: str, *, file: object) -> DataError:
    return DataError(found, file=file, expected=expected, remedy="export the model again")


def _plain(value: object) -> Any:
    """As JSON gives it back: lists, objects, null for what is not finite, text for anything else."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)


def as_object(text: str) -> dict[str, object]:
    """A JSON object from text; empty if it is something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
