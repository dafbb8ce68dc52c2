"""The encoder of one sequence."""

from __future__ import annotations

from torch import Tensor, nn

from bids_scseg.network.blocks import StageBuilder
from bids_scseg.network.spec import EncoderContract


class Encoder(nn.Module):
    """Stages of decreasing resolution over one input channel.

    Parameters
    ----------
    contract
        Channels and strides of the stages.
    stage
        Builds one stage.
    """

    def __init__(self, contract: EncoderContract, stage: StageBuilder) -> None:
        super().__init__()
        inputs = (1, *contract.channels[:-1])
        self.stages = nn.ModuleList(
            stage(before, after, stride)
            for before, after, stride in zip(inputs, contract.channels, contract.strides, strict=True)
        )

    def forward(self, image: Tensor, keep_skips: bool = True) -> tuple[list[Tensor], Tensor]:
        """Encode images of one sequence.

        Parameters
        ----------
        image : (B, 1, i, j, k)
            The sequence's images.
        keep_skips
            Whether intermediate features are wanted; if not, they are freed on the way.

        Returns
        -------
        skips : list of (B, channels, ...)
            Output of every stage but the last, full resolution first; empty unless wanted.
        bottleneck : (B, channels, ...)
            Output of the last stage.
        """
        skips: list[Tensor] = []
        features = image
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if keep_skips and index < len(self.stages) - 1:
                skips.append(features)
        return skips, features
