from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_scseg.training.config import ArmConfig
from bids_scseg.training.latent import disturb, mixture_noise

PAPER = ArmConfig(kind="latent")


def test_moments_of_the_mixture() -> None:
    noise = mixture_noise(np.random.default_rng(0), (100, 100, 100), PAPER).astype(np.float64)
    # variance: 0.25 pi^2 / 3 0.002^2 + 0.75 0.4^2 = 3.3e-6 + 0.12; the mean of 1e6 draws errs by 3.5e-4
    assert abs(noise.mean()) < 1.5e-3
    assert noise.var() == pytest.approx(0.1200033, rel=5e-3)
    # fourth moment: 0.75 * 3 * 0.4^4 (the logistic part is 1e-10)
    assert (noise**4).mean() == pytest.approx(0.0576, rel=2e-2)
    # |x| < 0.01: a logistic of scale 0.002 with tanh(0.01 / 0.004) = 0.98661, a normal of spread 0.4 with
    # erf(0.025 / sqrt 2) = 0.019945; 0.25 * 0.98661 + 0.75 * 0.019945 = 0.26161
    assert (np.abs(noise) < 0.01).mean() == pytest.approx(0.26161, abs=2e-3)


def test_either_part_alone() -> None:
    rng = np.random.default_rng(1)
    logistic = mixture_noise(rng, (200_000,), ArmConfig(logistic_share=1.0, logistic_scale=3.0))
    assert logistic.var() == pytest.approx(np.pi**2 / 3 * 9, rel=2e-2)
    normal = mixture_noise(rng, (200_000,), ArmConfig(logistic_share=0.0, normal_sd=2.0))
    assert normal.var() == pytest.approx(4.0, rel=2e-2)


def test_noise_is_an_examples_own() -> None:
    features = torch.zeros(2, 3, 2, 2, 2)
    one = disturb(features, index=torch.tensor([5, 6]), seed=0, config=PAPER)
    two = disturb(features, index=torch.tensor([6, 7]), seed=0, config=PAPER)
    assert torch.equal(one[1], two[0])
    assert not torch.equal(one[0], one[1])
    other = disturb(features, index=torch.tensor([5, 6]), seed=1, config=PAPER)
    assert not torch.equal(one, other)


def test_the_leaky_relu_comes_after_the_noise() -> None:
    quiet = ArmConfig(logistic_share=0.0, normal_sd=0.0)
    features = torch.tensor([-2.0, 3.0]).view(1, 2, 1, 1, 1)
    out = disturb(features, index=torch.tensor([0]), seed=0, config=quiet)
    assert out.flatten().tolist() == pytest.approx([-0.02, 3.0])
    assert disturb(features.bfloat16(), index=torch.tensor([0]), seed=0, config=PAPER).dtype == torch.bfloat16
