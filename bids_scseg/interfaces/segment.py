"""From the prepared case to lesion probabilities, by the inference process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, InputMultiPath, TraitedSpec, traits

from bids_scseg.inference.client import request_segmentation
from bids_scseg.interfaces.base import ScsegInterface, VersionedInputSpec


class SegmentLesionsInputSpec(VersionedInputSpec):
    """A prepared case and the model. Where and with how many threads it runs is not part of the hash."""

    case_files = InputMultiPath(File(exists=True), mandatory=True, desc="the prepared case")
    bundle = traits.Str(mandatory=True, nohash=True, desc="folder of the model bundle")
    bundle_sha256 = traits.Str(mandatory=True, desc="checksum of all that decides its output")
    socket = traits.Str(mandatory=True, nohash=True, desc="address of the inference process")
    deterministic = traits.Bool(desc="true: must not be taken from a run whose bits depend on threads")


class SegmentLesionsOutputSpec(TraitedSpec):
    """One map."""

    probability_file = File(exists=True, desc="lesion probability in prepared space, float32 .npy")


class SegmentLesions(ScsegInterface):
    """Ask the inference process for the lesion probabilities of a case."""

    input_spec = SegmentLesionsInputSpec
    output_spec = SegmentLesionsOutputSpec

    def _call(self, cwd: Path) -> dict[str, Any]:
        output = cwd / "probability.npy"
        request_segmentation(
            self.inputs.socket,
            bundle=Path(self.inputs.bundle),
            case=Path(self.inputs.case_files[0]).parent,
            output=output,
        )
        return {"probability_file": str(output)}
