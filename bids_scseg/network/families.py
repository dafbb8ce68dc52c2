"""Network families: what encoders and the decoder are made of, by name (docs/networks.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bids_scseg.errors import DataError
from bids_scseg.network.attention import (
    ConvolutionalAttention,
    NonLocal,
    attention_gate,
    squeeze_excitation,
)
from bids_scseg.network.blocks import (
    StageBuilder,
    conv_norm_relu,
    init_he,
    plain_stage,
    plain_up,
    residual_block,
)
from bids_scseg.network.encoder import Encoder
from bids_scseg.network.spec import EncoderContract, Size

RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)  # of the encoder's stages, nnU-Net ResEnc (Isensee et al. 2024)

EncoderBuilder = Callable[[EncoderContract, bool], nn.Module]
ModuleBuilder = Callable[[int], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Parts of a network.

    Attributes
    ----------
    encoder
        (contract, whether skips are ever asked of it) to the encoder of one sequence.
    stage
        (channels of upsampled features and skip, channels, (1, 1, 1)) to a stage of the decoder.
    up
        (channels, channels, stride) to what undoes a stride.
    gate
        Channels to a module that takes (upsampled features, skip) to a skip; None: skips stay as they are.
    bottleneck
        Channels to a module between fusion and decoder; None: nothing stands there.
    init
        Applied to every module of a new network; None: as torch initialises.
    """

    encoder: EncoderBuilder
    stage: StageBuilder
    up: StageBuilder = plain_up
    gate: ModuleBuilder | None = None
    bottleneck: ModuleBuilder | None = None
    init: Callable[[nn.Module], None] | None = init_he


def in_stages(stage: StageBuilder) -> EncoderBuilder:
    """Encoders of equal stages, such as :func:`bids_scseg.network.blocks.plain_stage`."""

    def encoder(contract: EncoderContract, gives_skips: bool) -> nn.Module:
        return Encoder(stage(*step) for step in contract.steps)

    return encoder


def weighted(attention: ModuleBuilder) -> StageBuilder:
    """Plain stages followed by a module that weights their features."""

    def stage(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
        return nn.Sequential(*_children(in_channels, out_channels, stride), attention(out_channels))

    return stage


def _children(in_channels: int, out_channels: int, stride: Size) -> tuple[nn.Module, ...]:
    return tuple(plain_stage(in_channels, out_channels, stride).children())


def _residual_encoder(contract: EncoderContract, gives_skips: bool) -> nn.Module:
    """A convolution on the image, then stages of residual blocks, more of them the deeper."""
    stages = []
    for level, (before, after, stride) in enumerate(contract.steps):
        stem = [conv_norm_relu(before, after, (1, 1, 1))] if level == 0 else []
        first = residual_block(after if stem else before, after, stride)
        count = RESIDUAL_BLOCKS[min(level, len(RESIDUAL_BLOCKS) - 1)]
        more = [residual_block(after, after, (1, 1, 1)) for _ in range(count - 1)]
        stages.append(nn.Sequential(*stem, first, *more))
    return Encoder(stages)


def _swin_encoder(contract: EncoderContract, gives_skips: bool) -> nn.Module:
    from bids_scseg.network.swin import SwinEncoder

    return SwinEncoder(contract, gives_skips)


def _mednext_stage(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    from bids_scseg.network.mednext import encoder_stage

    return encoder_stage(in_channels, out_channels, stride)


def _mednext_up(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    from bids_scseg.network.mednext import up

    return up(in_channels, out_channels, stride)


def _mednext_decoder_stage(in_channels: int, out_channels: int, stride: Size) -> nn.Module:
    from bids_scseg.network.mednext import decoder_stage

    return decoder_stage(in_channels, out_channels, stride)


FAMILIES: dict[str, Family] = {
    "plain": Family(encoder=in_stages(plain_stage), stage=plain_stage),
    "resenc": Family(encoder=_residual_encoder, stage=conv_norm_relu),
    "attgate": Family(encoder=in_stages(plain_stage), stage=plain_stage, gate=attention_gate),
    "se": Family(encoder=in_stages(weighted(squeeze_excitation)), stage=weighted(squeeze_excitation)),
    "cbam": Family(
        encoder=in_stages(weighted(ConvolutionalAttention)), stage=weighted(ConvolutionalAttention)
    ),
    "nonlocal": Family(encoder=in_stages(plain_stage), stage=plain_stage, bottleneck=NonLocal),
    "swinunetr": Family(encoder=_swin_encoder, stage=residual_block),
    # its sums are not normalised on their way to the heads: He's initialisation would start with large logits
    "mednext": Family(
        encoder=in_stages(_mednext_stage), stage=_mednext_decoder_stage, up=_mednext_up, init=None
    ),
}


def family(name: str) -> Family:
    """The family of that name.

    Raises
    ------
    DataError
        If there is no such family.
    """
    if name not in FAMILIES:
        raise DataError(
            f"network family {name!r} does not exist here",
            expected=f"one of {sorted(FAMILIES)}",
            remedy="choose one of these in the recipe's network.family",
        )
    return FAMILIES[name]
