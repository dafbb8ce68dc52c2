"""The encoder of one sequence."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class Encoder(nn.Module):
    """Stages of decreasing resolution over one input channel.

    Parameters
    ----------
    stages
        Full resolution first; each takes the output of the one before.
    """

    def __init__(self, stages: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

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
