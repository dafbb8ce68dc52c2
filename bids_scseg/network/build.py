"""The whole network, from its specification."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bids_scseg.errors import DataError
from bids_scseg.network.decoder import Decoder
from bids_scseg.network.families import family
from bids_scseg.network.fusion import AttentionFusion, coverage_weights, fold_weights, fused_linear, impute
from bids_scseg.network.spec import EncoderContract, total_stride
from bids_scseg.recipe.check import check_network
from bids_scseg.recipe.model import NetworkSpec


@dataclass(slots=True, kw_only=True)
class Encoded:
    """What the encoders hand over.

    Attributes
    ----------
    features : (B, S, C, i, j, k)
        Bottleneck features of each sequence; 0 where the sequence is missing.
    skips : list of (B, channels, ...)
        Skip features, full resolution first.
    available : (B, S) bool
        Which sequences are present, on the features' device.
    """

    features: Tensor
    skips: list[Tensor]
    available: Tensor


class SegmentationNet(nn.Module):
    """Encoders by sequence, imputation and fusion at the bottleneck, one decoder.

    Build it by :func:`build_network`. ``forward`` is ``encode``, ``fuse`` and ``decode`` in a row; training
    variants that work on the bottleneck call the three themselves.

    Attributes
    ----------
    spec
        Its specification.
    anchors
        Sequences that may give the skips when ``spec.skips`` is ``anchor``, best first.
    """

    def __init__(self, spec: NetworkSpec, anchors: tuple[str, ...]) -> None:
        super().__init__()
        self.spec = spec
        self.anchors = anchors
        contract, parts = EncoderContract.of(spec), family(spec.family)
        self.encoders = nn.ModuleDict(
            {
                name: parts.encoder(contract, spec.skips == "mean" or name in anchors)
                for name in spec.sequences
            }
        )
        self.fusion = _fusion(spec)
        self.decoder = Decoder(contract, parts, classes=spec.classes, heads=spec.deep_supervision)

    def forward(self, images: Tensor, available: Tensor, coverage: Tensor | None = None) -> list[Tensor]:
        """Segment.

        Parameters
        ----------
        images : (B, S, i, j, k) float
            Prepared images in the order of ``spec.sequences``; sizes are multiples of the total stride.
            Values of missing sequences are never looked at.
        available : (B, S) bool
            Which sequences are present; at least one for each item.
        coverage : (B, S, i, j, k) bool, optional
            Where each sequence has data; used by ``impute: voxel`` only. None means everywhere.

        Returns
        -------
        list of (B, classes, i, j, k)
            Logits, full resolution first: one in evaluation mode, ``spec.deep_supervision`` in training.

        Raises
        ------
        DataError
            If sizes do not fit, an item has no sequence, or its anchor is missing under ``skips: anchor``.
        """
        encoded = self.encode(images, available)
        return self.decode(self.fuse(encoded, coverage), encoded.skips)

    def encode(self, images: Tensor, available: Tensor) -> Encoded:
        """Run the encoders one after another, each on the items that have its sequence and on no others."""
        self._check_input(images, available)
        gives_skips = self._skip_rows(available)
        collector = _SkipSum()
        features: list[Tensor | None] = []
        for channel, name in enumerate(self.spec.sequences):
            rows = available[:, channel].nonzero().flatten()
            if not len(rows):
                features.append(None)
                continue
            wanted = gives_skips[rows, channel]
            skips, bottleneck = self.encoders[name](images[rows, channel : channel + 1], bool(wanted.any()))
            features.append(_scatter(bottleneck, rows, len(images)))
            collector.add(skips, rows=rows, wanted=wanted, batch=len(images))
        stacked, skips = _stack_present(features), collector.mean(gives_skips.sum(1))
        # flags may come on CPU; moved here and not in fuse, which is traced: a trace would keep the device
        return Encoded(features=stacked, skips=skips, available=available.to(stacked.device))

    def fuse(self, encoded: Encoded, coverage: Tensor | None = None) -> Tensor:
        """Fuse, with missing features imputed or masked out: (B, S, C, i, j, k) to (B, C, i, j, k)."""
        if self.fusion is None:
            return encoded.features[:, 0]
        weights = encoded.available
        if self.spec.impute == "voxel" and coverage is not None:
            size = encoded.features.shape[-3:]
            weights = coverage_weights(coverage, encoded.available, (size[0], size[1], size[2]))
        if isinstance(self.fusion, AttentionFusion):
            attended: Tensor = self.fusion(encoded.features, weights)
            return attended
        fused: Tensor = self.fusion(impute(encoded.features, weights).flatten(1, 2))
        return fused

    def decode(self, bottleneck: Tensor, skips: list[Tensor]) -> list[Tensor]:
        """Logits from fused features and skips, full resolution first; ``skips`` is emptied on the way."""
        outputs = self.spec.deep_supervision if self.training else 1
        logits: list[Tensor] = self.decoder(bottleneck, skips, outputs)
        return logits

    def _skip_rows(self, available: Tensor) -> Tensor:
        """(B, S) bool: which sequences give the skips of each item."""
        if self.spec.skips == "mean":
            return available
        chosen = torch.zeros_like(available)
        served = torch.zeros_like(available[:, 0])
        for name in self.anchors:
            channel = self.spec.sequences.index(name)
            chosen[:, channel] = available[:, channel] & ~served
            served = served | available[:, channel]
        if not bool(served.all()):
            raise DataError(
                "the anchor sequence is missing, from which this network takes its skip connections",
                expected=f"one of {list(self.anchors)}",
                remedy="use a model with skips: mean, which takes any subset of sequences",
            )
        return chosen

    def _check_input(self, images: Tensor, available: Tensor) -> None:
        names = list(self.spec.sequences)
        if images.ndim != 5 or images.shape[1] != len(names):
            raise DataError(
                f"images of shape {tuple(images.shape)}", expected=f"(B, {len(names)}, i, j, k): {names}"
            )
        if available.shape != images.shape[:2] or available.dtype != torch.bool:
            raise DataError(
                f"available is {available.dtype} of shape {tuple(available.shape)}",
                expected=f"bool of shape {tuple(images.shape[:2])}",
            )
        if any(size % step for size, step in zip(images.shape[2:], total_stride(self.spec), strict=True)):
            raise DataError(
                f"images of size {tuple(images.shape[2:])}",
                expected=f"multiples of {total_stride(self.spec)}",
            )
        if not bool(available.any(1).all()):
            raise DataError("an item without any sequence", expected="at least one available sequence")


class _SkipSum:
    """Running sum of skip features, so that memory does not grow with the number of sequences."""

    def __init__(self) -> None:
        self.total: list[Tensor] = []

    def add(self, skips: list[Tensor], *, rows: Tensor, wanted: Tensor, batch: int) -> None:
        """Add the skips (empty list: nothing) of the items ``rows`` where ``wanted``."""
        if not skips:
            return
        if not bool(wanted.all()):
            skips, rows = [skip[wanted] for skip in skips], rows[wanted]
        whole = len(rows) == batch
        if not self.total:
            self.total = [_scatter(skip, rows, batch) for skip in skips]
        elif whole:
            # in place only without gradients: autograd needs the encoder's own features
            inplace = not torch.is_grad_enabled()
            self.total = [
                total.add_(skip) if inplace else total + skip
                for total, skip in zip(self.total, skips, strict=True)
            ]
        else:
            self.total = [
                total.index_add(0, rows, skip) for total, skip in zip(self.total, skips, strict=True)
            ]

    def mean(self, counts: Tensor) -> list[Tensor]:
        """Divide each item's sum by the number of sequences in it."""
        if bool((counts == 1).all()):
            return self.total
        share = counts[:, None, None, None, None]
        return [total / share.to(total) for total in self.total]


def _fusion(spec: NetworkSpec) -> nn.Conv3d | AttentionFusion | None:
    """The fusion layer; the single-sequence baseline of the paper has none."""
    count = len(spec.sequences)
    if count == 1:
        return None
    build = AttentionFusion if spec.fusion == "attention" else fused_linear
    return build(spec.channels[-1], count)


def _scatter(features: Tensor, rows: Tensor, batch: int) -> Tensor:
    """Place the features of the items ``rows`` into a batch that is 0 elsewhere."""
    if len(rows) == batch:
        return features
    return features.new_zeros((batch, *features.shape[1:])).index_copy(0, rows, features)


def _stack_present(features: list[Tensor | None]) -> Tensor:
    """Stack features by sequence, 0 for sequences that no item has."""
    reference = next(feature for feature in features if feature is not None)
    return torch.stack([torch.zeros_like(reference) if part is None else part for part in features], dim=1)


def build_network(spec: NetworkSpec, *, anchors: tuple[str, ...] = ()) -> SegmentationNet:
    """Build a network with fresh weights, He-initialised where its family does not say otherwise.

    Parameters
    ----------
    spec
        What to build.
    anchors
        Sequences that may give the skips under ``skips: anchor``, best first: each item of a batch takes
        its first available one. Empty: the first of ``spec.sequences`` alone, as in the paper.

    Raises
    ------
    DataError
        If the specification is inconsistent, its family does not exist, or an anchor is none of its
        sequences.
    """
    check_network(spec)
    anchors = anchors or spec.sequences[:1]
    strangers = [name for name in anchors if name not in spec.sequences]
    if strangers:
        raise DataError(
            f"anchors {strangers} have no encoder", expected=f"names among {list(spec.sequences)}"
        )
    network = SegmentationNet(spec, anchors)
    init = family(spec.family).init
    return network.apply(init) if init else network


def fold_missing(network: SegmentationNet, available: tuple[str, ...]) -> SegmentationNet:
    """The same function for one fixed set of available sequences, without the encoders it never runs.

    Mean imputation is linear, so it folds into the weights of a linear fusion; attention does without it.

    Parameters
    ----------
    network
        A network with ``impute: mean``; it is not changed. Encoders and decoder are shared with the result.
    available
        Names of the sequences that are present, in any order.

    Returns
    -------
    SegmentationNet
        Its ``spec.sequences`` are the available ones in the network's channel order.

    Raises
    ------
    DataError
        If nothing or something unknown is available, the anchor is missing under ``skips: anchor``,
        or imputation depends on coverage.
    """
    spec = network.spec
    if not available or any(name not in spec.sequences for name in available):
        raise DataError(f"available sequences {list(available)}", expected=f"some of {list(spec.sequences)}")
    if spec.impute != "mean":
        raise DataError(f"impute: {spec.impute} cannot be folded into weights", expected="impute: mean")
    names = tuple(name for name in spec.sequences if name in available)
    anchors = tuple(name for name in network.anchors if name in names)
    if spec.skips == "anchor" and not anchors:
        raise DataError("the anchor sequence is missing", expected=f"one of {list(network.anchors)}")
    # built on the meta device: every parameter is replaced below
    with torch.device("meta"):
        folded = SegmentationNet(replace(spec, sequences=names), anchors)
    folded.encoders = nn.ModuleDict({name: network.encoders[name] for name in names})
    folded.decoder = network.decoder
    folded.fusion = _folded_fusion(network.fusion, [name in names for name in spec.sequences])
    return folded.train(network.training)


def _folded_fusion(
    fusion: nn.Conv3d | AttentionFusion | None, available: list[bool]
) -> nn.Conv3d | AttentionFusion | None:
    if fusion is None:
        return None
    if isinstance(fusion, AttentionFusion):
        return fusion.among(available)
    weight = fold_weights(fusion.weight.detach(), available)
    folded = nn.Conv3d(
        weight.shape[1], weight.shape[0], kernel_size=1, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        folded.weight.copy_(weight)
        if folded.bias is not None and fusion.bias is not None:
            folded.bias.copy_(fusion.bias)
    return folded


def parameter_count(module: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
