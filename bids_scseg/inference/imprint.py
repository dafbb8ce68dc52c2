"""Who stands behind a model: licence, authors and contact, written into a bundle that is there already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bids_scseg.errors import UsageError
from bids_scseg.files import write_text
from bids_scseg.inference.bundle import MODEL_FILE, ModelBundle, load_bundle, packaged_models
from bids_scseg.inference.facts import facts_to_json, spdx


def imprint(
    path: str | Path,
    *,
    license: str | None = None,
    authors: Sequence[str] | None = None,
    contact: str | None = None,
) -> ModelBundle:
    """Write into a bundle whose it is; weights, card and every checksum stay as they are.

    Parameters
    ----------
    path
        The bundle's folder.
    license
        SPDX expression of the weights' licence.
    authors, contact
        One line of text each. None, here and above, leaves what is recorded.

    Returns
    -------
    The bundle, read back.

    Raises
    ------
    UsageError
        If it is a model that comes with the program.
    MissingInputError
        If there is no such folder.
    DataError
        If the bundle is not sound, or something given is no licence or no line of text.
    OutputError
        If it cannot be written.
    """
    bundle = load_bundle(path)
    if bundle.path in {folder.resolve() for folder in packaged_models().values()}:
        raise UsageError(
            f"{bundle.name} comes with the program", expected="a bundle of yours", remedy="copy its folder"
        )
    known = bundle.facts
    facts = replace(
        known,
        license=known.license if license is None else spdx(license),
        authors=known.authors if authors is None else tuple(authors),
        contact=known.contact if contact is None else contact,
    )
    stated = facts_to_json(facts)
    file = bundle.path / MODEL_FILE
    model = json.loads(file.read_text("utf-8"))
    text = json.dumps({**model, "facts": stated}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(file, text)
    return load_bundle(bundle.path)
