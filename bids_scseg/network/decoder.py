"""The decoder, built from the encoder's published contract."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bids_scseg.network.families import Family
from bids_scseg.network.spec import EncoderContract


class Decoder(nn.Module):
    """Stages of increasing resolution with skip connections and segmentation heads.

    Parameters
    ----------
    contract
        Channels and strides of the encoder that feeds it.
    family
        Gives its parts.
    classes
        Output classes, background included.
    heads
        Number of resolutions with a segmentation head, full resolution first.
    """

    def __init__(self, contract: EncoderContract, family: Family, *, classes: int, heads: int) -> None:
        super().__init__()
        channels, strides = contract.channels, contract.strides
        # index 0 = full resolution; upsampling undoes the stride of the next deeper stage
        self.ups = nn.ModuleList(
            family.up(deep, shallow, stride)
            for shallow, deep, stride in zip(channels[:-1], channels[1:], strides[1:], strict=True)
        )
        self.stages = nn.ModuleList(
            family.stage(2 * shallow, shallow, (1, 1, 1)) for shallow in channels[:-1]
        )
        self.heads = nn.ModuleList(
            nn.Conv3d(channels[level], classes, kernel_size=1) for level in range(heads)
        )
        self.gates = nn.ModuleList(map(family.gate, channels[:-1]) if family.gate else ())
        self.bottleneck = family.bottleneck(channels[-1]) if family.bottleneck else nn.Identity()

    def forward(self, bottleneck: Tensor, skips: list[Tensor], outputs: int = 1) -> list[Tensor]:
        """Decode.

        Parameters
        ----------
        bottleneck : (B, channels[-1], ...)
            Fused features.
        skips : list of (B, channels, ...)
            Full resolution first. The list is emptied on the way, so that each is freed after its use.
        outputs
            Number of resolutions wanted, full resolution first.

        Returns
        -------
        list of (B, classes, ...)
            Logits, full resolution first.
        """
        logits: list[Tensor] = []
        features = self.bottleneck(bottleneck)
        for level in reversed(range(len(self.stages))):
            features = torch.cat(self._joined(level, features, skips), dim=1)
            features = self.stages[level](features)
            if level < outputs:
                logits.append(self.heads[level](features))
        return logits[::-1]

    def _joined(self, level: int, features: Tensor, skips: list[Tensor]) -> list[Tensor]:
        """Upsampled features and the skip that belongs to them."""
        up, skip = self.ups[level](features), skips.pop()
        return [up, self.gates[level](up, skip) if len(self.gates) else skip]
