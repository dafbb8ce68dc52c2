from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.network.fusion import coverage_weights, fold_weights, impute


def values(*numbers: float) -> torch.Tensor:
    """(1, S, 1, 1, 1, 1) features."""
    return torch.tensor(numbers).reshape(1, -1, 1, 1, 1, 1)


def test_missing_features_are_the_mean_of_the_available_ones() -> None:
    weights = torch.tensor([[1, 0, 1]]).bool()
    found = impute(values(2.0, float("nan"), 6.0), weights)
    assert found.flatten().tolist() == [2.0, 4.0, 6.0]  # (2 + 6) / 2 = 4


def test_partly_covered_features_are_filled_in_proportion() -> None:
    # m = (1 * 2 + 0.5 * 6 + 0) / 1.5 = 10/3; second: 0.5 * 6 + 0.5 * 10/3 = 14/3
    found = impute(values(2.0, 6.0, 9.0), torch.tensor([[1.0, 0.5, 0.0]]))
    torch.testing.assert_close(found.flatten(), torch.tensor([2.0, 14 / 3, 10 / 3]))


@given(st.lists(st.booleans(), min_size=1, max_size=6).filter(any), st.integers(0, 1000))
def test_imputation_keeps_available_features_and_ignores_the_rest(present: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, len(present), 2, 1, 1, 2, generator=generator)
    weights = torch.tensor([present])
    filled = impute(features, weights)
    torch.testing.assert_close(filled[weights], features[weights])
    mean = features[weights].mean(0)
    for row in filled[~weights]:
        torch.testing.assert_close(row, mean)


@given(st.lists(st.booleans(), min_size=1, max_size=6).filter(any), st.integers(0, 1000))
def test_folded_weights_do_what_imputation_and_fusion_do(present: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, len(present), 2, 1, 1, 1, generator=generator)
    weight = torch.randn(2, 2 * len(present), 1, 1, 1, generator=generator)
    full = weight.flatten(1) @ impute(features, torch.tensor([present])).flatten()
    available = features[:, [i for i, is_there in enumerate(present) if is_there]]
    folded = fold_weights(weight, present).flatten(1) @ available.flatten()
    torch.testing.assert_close(folded, full, rtol=1e-4, atol=1e-5)


def test_coverage_is_pooled_and_absent_sequences_have_none() -> None:
    coverage = torch.ones(1, 3, 2, 2, 8, dtype=torch.bool)
    coverage[0, 0, :, :, 6:] = False  # covers three quarters of S-I: 1 and 0.5 after pooling to two
    coverage[0, 1, :, :, :4] = False
    weights = coverage_weights(coverage, torch.tensor([[True, True, False]]), (1, 1, 2))
    assert weights.shape == (1, 3, 1, 1, 1, 2)
    assert weights[0, :, 0, 0, 0].tolist() == [[1.0, 0.5], [0.0, 1.0], [0.0, 0.0]]


def test_where_nothing_is_covered_the_mean_per_subject_holds() -> None:
    coverage = torch.zeros(1, 2, 2, 2, 4, dtype=torch.bool)
    weights = coverage_weights(coverage, torch.tensor([[True, False]]), (1, 1, 1))
    assert weights.flatten().tolist() == [1.0, 0.0]
