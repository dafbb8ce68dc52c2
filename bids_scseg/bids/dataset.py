"""The files at the root of an output dataset, and the sidecars of what lies in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bids_scseg import files
from bids_scseg.bids.write import (
    APP_NAME,
    BIDS_VERSION,
    IGNORED,
    safe_join,
    write_json,
    write_text,
    write_tsv,
)
from bids_scseg.errors import DataError, OutputError
from bids_scseg.recipe.model import Recipe

RAW = "raw"  # name of the input dataset in BIDS URIs
NO_LINKS: Mapping[str, Path] = MappingProxyType({})

# What else is written at the root; the description comes first, so with it they are ours.
ROOT_FILES = ("README.md", "CITATION.md", ".bidsignore", "descriptions.tsv")

README_TEXT = """\
# {title}

Spinal cord lesion segmentation by {app} {version}, recipe {recipe}.

Research use only. These results were computed by software and were not reviewed by a physician. Whether the
model was validated on patients stands in its card and in every report.

- `sub-*/[ses-*/]anat/*_label-SC_*_mask.nii.gz`: spinal cord, on the lattice of each source image. The value
  of `desc-` is the suffix of that image (`desc-T2starw`: the mask belongs to the `_T2starw` image).
- `*_label-lesion_probseg.nii.gz`, `*_label-lesion_mask.nii.gz`, `*_seg-lesions_dseg.nii.gz`: probability,
  mask and numbered lesions on the lattice of the anchor, slabs together; with `chunk-` for single slabs.
- `*_seg-lesions_dseg.tsv`: one row for each lesion; columns are described in the JSON file beside it.
- `*_geometry.json`, `*_summary.json`: how images were brought together, and the session's measures.
- `*_desc-manual_*`: not ours. Masks that a reader corrected; the next run takes them in the place of its own.
- `sub-*.html`, `figures/`: one report for each session. `group/`, `phenotype/`: tables over all sessions.
- `logs/`: state of every session, configuration of the runs, methods text.

Lesions are numbered once for each session; the same number means the same lesion in all its images.
"""

CITATION_TEXT = """\
# How to cite

If you use these results, please cite {app} {version} and the works behind its recipe `{recipe}`:

{references}
"""


def write_dataset_files(
    out: str | Path,
    raw: str | Path,
    *,
    recipe: Recipe,
    version: str,
    links: Mapping[str, Path] = NO_LINKS,
) -> None:
    """Write everything at the root of the output dataset; doing so again, or twice at once, changes nothing.

    Parameters
    ----------
    out
        Output folder; made if absent.
    raw
        Root of the raw dataset.
    recipe
        Names the task and its references.
    version
        Of this program.
    links
        Other datasets of which files were used, by the names that their URIs have.

    Raises
    ------
    OutputError
        If the folder belongs to a raw dataset or another program, or cannot be written.
    """
    write_dataset_description(out, raw, version=version, links=links)
    title = f"{APP_NAME} derivatives"
    facts = {"app": APP_NAME, "version": version, "recipe": recipe.name}
    references = "\n".join(f"- {reference}" for reference in recipe.references)
    write_text(out, "README.md", README_TEXT.format(title=title, **facts))
    write_text(out, "CITATION.md", CITATION_TEXT.format(references=references, **facts))
    write_text(out, ".bidsignore", "\n".join(IGNORED) + "\n")
    _write_descriptions(out, recipe)


def write_dataset_description(
    out: str | Path, raw: str | Path, *, version: str, links: Mapping[str, Path] = NO_LINKS
) -> Path:
    """Write ``dataset_description.json``; see :func:`write_dataset_files`.

    Links of earlier runs stay while they lead somewhere: sessions that are not of this run may need them.
    """
    check_output_folder(out, raw)
    link = _link(Path(out), Path(raw))
    more = {name: _link(Path(out), folder) for name, folder in links.items()}
    source = {"URL": link} | _doi(Path(raw))
    return write_json(
        out,
        "dataset_description.json",
        {
            "Name": f"{APP_NAME} derivatives",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": APP_NAME, "Version": version}],
            "SourceDatasets": [source],
            "DatasetLinks": {**_earlier_links(Path(out)), **more, RAW: link},
        },
    )


def _earlier_links(out: Path) -> dict[str, str]:
    """Links of an earlier run that still lead to a folder."""
    try:
        described = files.read_json(out / "dataset_description.json")
    except DataError:
        return {}
    links = described.get("DatasetLinks") if isinstance(described, dict) else None
    known = links.items() if isinstance(links, dict) else ()
    return {str(name): str(link) for name, link in known if _leads_somewhere(out, link)}


def _leads_somewhere(out: Path, link: object) -> bool:
    folder = linked_folder(out, link)
    return folder is not None and folder.is_dir()


def linked_folder(out: Path, address: object) -> Path | None:
    """Folder of a dataset link: a ``file:`` URI, or a path relative to the output folder; None: neither."""
    if not isinstance(address, str):
        return None
    try:
        parts = urlsplit(address)
        if parts.scheme == "file":
            return Path(url2pathname(parts.path))
        return out / address if not parts.scheme else None
    except ValueError:
        return None


def is_own_dataset(folder: str | Path) -> bool:
    """Whether a folder is an output folder of this program, by its description."""
    try:
        described = files.read_json(Path(folder) / "dataset_description.json")
        return APP_NAME in [entry["Name"] for entry in described["GeneratedBy"]]  # type: ignore[index]
    except (DataError, TypeError, KeyError, IndexError):
        return False


def check_output_folder(out: str | Path, raw: str | Path) -> None:
    """Refuse to write into somebody else's dataset.

    Raises
    ------
    OutputError
        If `out` is the raw dataset itself, lies inside one of its subjects, holds a dataset description
        that is not ours, or holds other people's files of the names that ours bear.
    """
    folder, source = Path(out).resolve(), Path(raw).resolve()
    remedy = "choose a folder of its own, such as derivatives/bids_scseg"
    if folder == source:
        raise OutputError("the output folder is the input dataset", file=folder, remedy=remedy)
    if folder.is_relative_to(source) and folder.relative_to(source).parts[0].startswith("sub-"):
        raise OutputError("the output folder lies among the input's images", file=folder, remedy=remedy)
    if folder.exists() and not folder.is_dir():
        raise OutputError("the output folder is a file", file=folder, remedy=remedy)
    file = safe_join(folder, "dataset_description.json")
    if not file.is_file():
        _refuse_overwriting(folder, remedy)
        return
    if not is_own_dataset(folder):
        raise OutputError(
            "the folder holds another dataset", file=file, expected=f"GeneratedBy {APP_NAME}", remedy=remedy
        )


def _refuse_overwriting(folder: Path, remedy: str) -> None:
    """Refuse a folder without a description of ours that has files of the names that ours will have."""
    taken = [name for name in ROOT_FILES if (folder / name).exists()]
    if taken:
        raise OutputError(
            f"the folder has a {taken[0]} of something else, which would be overwritten",
            file=folder,
            expected="an empty folder, or one made by this program",
            remedy=remedy,
        )


def dataset_name(name: str) -> str:
    """A name for a dataset in BIDS URIs: what they cannot hold is left out, and ``raw`` is taken."""
    plain = "".join(letter for letter in name if letter.isascii() and (letter.isalnum() or letter in "._-"))
    return plain if plain and plain != RAW else f"derivatives-{plain}".rstrip("-")


def raw_uri(relative: str) -> str:
    """BIDS URI of a file of the raw dataset."""
    return f"bids:{RAW}:{relative}"


def own_uri(relative: str) -> str:
    """BIDS URI of a file of the output dataset."""
    return f"bids::{relative}"


def mask_metadata(
    sources: Sequence[str], *, kind: str, description: str, reference: str = "orig"
) -> dict[str, object]:
    """Sidecar of a mask.

    Parameters
    ----------
    sources
        BIDS URIs (:func:`raw_uri`, :func:`own_uri`) of what it was computed from.
    kind
        BIDS mask type: ``Lesion`` or ``ROI``.
    description
        One sentence for people.
    reference
        BIDS URI of the image on whose lattice it lies, or ``orig``.
    """
    return {"Type": kind, **image_metadata(sources, description=description, reference=reference)}


def image_metadata(
    sources: Sequence[str],
    *,
    description: str,
    reference: str = "orig",
    more: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Sidecar of any other image; `more` holds further keys, such as ``SkullStripped``."""
    return {
        "Description": description,
        "Sources": list(sources),
        "SpatialReference": reference,
        **(more or {}),
    }


def _link(out: Path, raw: Path) -> str:
    """Relative path to the raw dataset where the output lies inside it (it may be moved), else its URI."""
    out, raw = out.resolve(), raw.resolve()
    return os.path.relpath(raw, out) if out.is_relative_to(raw) else raw.as_uri()


def _doi(raw: Path) -> dict[str, str]:
    try:
        description = files.read_json(raw / "dataset_description.json")
    except DataError:
        return {}
    doi = description.get("DatasetDOI") if isinstance(description, dict) else None
    return {"DOI": doi} if doi and isinstance(doi, str) else {}


def _write_descriptions(out: str | Path, recipe: Recipe) -> None:
    """What the values of ``desc-`` mean."""
    suffixes = sorted({suffix for rule in recipe.sequences for suffix in rule.suffixes})
    rows = [
        {
            "desc_id": "desc-preproc",
            "description": "Slabs of one sequence, aligned and fused by one linear interpolation",
        }
    ]
    rows += [
        {
            "desc_id": f"desc-{suffix}",
            "description": f"On the lattice of the source image with suffix {suffix}",
        }
        for suffix in suffixes
    ]
    write_tsv(out, "descriptions.tsv", rows, columns=("desc_id", "description"))
