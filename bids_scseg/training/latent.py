"""Latent feature augmentation: noise on the bottleneck in training (Walsh et al. 2024)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from bids_scseg.network.blocks import LEAKY_SLOPE
from bids_scseg.training.config import ArmConfig

Rng = np.random.Generator
STREAM = 1  # keeps an example's latent noise apart from the draws that made its patch


def mixture_noise(rng: Rng, shape: tuple[int, ...], config: ArmConfig) -> npt.NDArray[np.float32]:
    """Noise of a mixture, drawn anew for each element.

    Parameters
    ----------
    rng
        Where draws come from.
    shape
        Of the result.
    config
        With probability ``logistic_share`` Logistic(0, ``logistic_scale``), else Normal(0, ``normal_sd``).

    Returns
    -------
    ``shape`` float32
        Mean 0, variance ``share * pi**2 / 3 * scale**2 + (1 - share) * sd**2``.
    """
    narrow = rng.random(shape, np.float32) < config.logistic_share
    noise = rng.standard_normal(shape, np.float32) * np.float32(config.normal_sd)
    noise[narrow] = rng.logistic(0.0, config.logistic_scale, int(narrow.sum()))
    return noise


def disturb(bottleneck: Tensor, *, index: Tensor, seed: int, config: ArmConfig) -> Tensor:
    """Add noise to the bottleneck, then apply the leaky ReLU.

    Parameters
    ----------
    bottleneck : (B, C, i, j, k)
        What the decoder would get.
    index : (B,) int64
        Numbers of the examples: the noise of an example depends on ``seed`` and its number only, so it is the
        same on every device and after a restart.
    seed, config
        Of the noise.
    """
    shape = tuple(bottleneck.shape[1:])
    noise = [
        mixture_noise(np.random.default_rng([seed, int(number), STREAM]), shape, config) for number in index
    ]
    added = torch.from_numpy(np.stack(noise)).to(bottleneck)
    return functional.leaky_relu(bottleneck + added, LEAKY_SLOPE)
