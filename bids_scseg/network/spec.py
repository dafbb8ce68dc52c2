"""The contract between encoder and decoder, as plain numbers (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from bids_scseg.recipe.model import NetworkSpec

Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderContract:
    """What an encoder promises to a decoder.

    The decoder is built from this and never from the encoder itself: a decoder that held its encoder
    would bring the encoder's weights into the state dict a second time.

    Attributes
    ----------
    channels
        Channels of each stage's output, from full resolution to the bottleneck.
    strides
        Downsampling on entry to each stage.
    """

    channels: tuple[int, ...]
    strides: tuple[Size, ...]

    @classmethod
    def of(cls, spec: NetworkSpec) -> EncoderContract:
        """The contract that a network specification implies."""
        return cls(channels=spec.channels, strides=spec.strides)

    @property
    def steps(self) -> tuple[tuple[int, int, Size], ...]:
        """(input channels, output channels, stride) of each stage of an encoder of one image."""
        return tuple(zip((1, *self.channels[:-1]), self.channels, self.strides, strict=True))


def total_stride(spec: NetworkSpec) -> Size:
    """Downsampling from input to bottleneck along the three axes; input sizes must be multiples of it."""
    product = [1, 1, 1]
    for stride in spec.strides:
        product = [total * step for total, step in zip(product, stride, strict=True)]
    return product[0], product[1], product[2]
