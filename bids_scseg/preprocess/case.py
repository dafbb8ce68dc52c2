"""A session on the prepared grid, and its form on disk: one folder, arrays as .npy, no pickles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bids_scseg.errors import DataError, GeometryError, MissingInputError
from bids_scseg.preprocess.labels import LABEL_SHARE
from bids_scseg.space.geometry import Geometry

BoolArray: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedCase:
    """A session on the prepared grid, ready for a network.

    Attributes
    ----------
    image : (sequence, i, j, k) float32
        Channels in the recipe's order; normalised as it says, 0 where not covered and in absent channels.
    coverage : (sequence, i, j, k) bool
        Where a channel has data.
    available
        Which channels have data at all.
    sequences
        Names of the channels.
    recipe
        Name of the recipe.
    case, subject, session
        Identity; may be empty.
    geometry
        The map back to native space; None for cases that never had one.
    cord : (i, j, k) float32 or None
        Share of each voxel in the cord, mean over the sequences that saw it there.
    """

    image: npt.NDArray[np.float32]
    coverage: BoolArray
    available: tuple[bool, ...]
    sequences: tuple[str, ...]
    recipe: str = ""
    case: str = ""
    subject: str = ""
    session: str | None = None
    geometry: Geometry | None = None
    cord: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.sequences)
        if self.image.ndim != 4 or self.image.shape != self.coverage.shape or len(self.image) != n:
            raise GeometryError(
                f"prepared image {self.image.shape} and coverage {self.coverage.shape}",
                expected=f"both ({n}, i, j, k)",
            )
        if len(self.available) != n:
            raise GeometryError(f"{len(self.available)} availability flags", expected=str(n))
        for array in (self.image, self.coverage, self.cord):
            if array is not None:
                array.flags.writeable = False

    def save(self, folder: Path, *, dtype: npt.DTypeLike = np.float32) -> None:
        """Write the case into a folder (created if absent): arrays as .npy, the rest as ``case.json``.

        ``dtype`` is that of the image on disk, float32 or float16 (half the size, for training).
        ``cord.npy`` is the mask (share of at least one half), ``cord_share.npy`` the shares in float16.
        """
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "image.npy", self.image.astype(dtype), allow_pickle=False)
        np.save(folder / "coverage.npy", self.coverage, allow_pickle=False)
        if self.cord is not None:
            np.save(folder / "cord.npy", (self.cord >= LABEL_SHARE).astype(np.uint8), allow_pickle=False)
            np.save(folder / "cord_share.npy", self.cord.astype(np.float16), allow_pickle=False)
        record = {
            "case": self.case,
            "subject": self.subject,
            "session": self.session,
            "recipe": self.recipe,
            "sequences": list(self.sequences),
            "available": list(self.available),
            "geometry": None if self.geometry is None else self.geometry.to_json(),
        }
        (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PreparedCase:
        """Read what :meth:`save` wrote.

        Raises
        ------
        MissingInputError
            If the folder has no case.
        DataError
            If ``case.json`` or an array is malformed.
        """
        record = _read_record(folder)
        try:
            arrays = {name: _read_array(folder, name) for name in ("image", "coverage")}
            share = _read_array(folder, "cord_share" if (folder / "cord_share.npy").exists() else "cord")
            if arrays["image"] is None or arrays["coverage"] is None:
                raise DataError("no image.npy or coverage.npy", file=folder, expected="a prepared case")
            return cls(
                image=arrays["image"].astype(np.float32),
                coverage=arrays["coverage"].astype(bool),
                available=tuple(bool(flag) for flag in record["available"]),
                sequences=tuple(record["sequences"]),
                recipe=record["recipe"],
                case=record["case"],
                subject=record["subject"],
                session=record["session"],
                geometry=None if record["geometry"] is None else Geometry.from_json(record["geometry"]),
                cord=None if share is None else share.astype(np.float32),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"malformed case ({error})", file=folder, expected="a prepared case") from error


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "case.json"
    if not path.is_file():
        raise MissingInputError("no prepared case", file=path, expected="a folder with case.json")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not JSON ({error})", file=path, expected="a prepared case") from error
    return record


def _read_array(folder: Path, name: str) -> npt.NDArray[Any] | None:
    path = folder / f"{name}.npy"
    return np.asarray(np.load(path, allow_pickle=False)) if path.is_file() else None
