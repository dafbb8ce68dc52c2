from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.network.fusion import AttentionFusion, coverage_weights, fold_weights, impute


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


def attention(channels: int = 4, sequences: int = 3) -> AttentionFusion:
    torch.manual_seed(6)
    fusion = AttentionFusion(channels, sequences)
    torch.nn.init.normal_(fusion.marks)
    return fusion


def test_attention_does_not_see_absent_sequences() -> None:
    fusion, features = attention(), torch.randn(2, 3, 4, 2, 2, 2)
    available = torch.tensor([[True, False, True], [False, True, False]])
    soiled = features.clone()
    soiled[~available] = float("nan")
    with torch.no_grad():
        assert torch.equal(fusion(soiled, available), fusion(features, available))


def test_attention_sees_every_place_of_every_available_sequence() -> None:
    fusion, features = attention(), torch.randn(1, 3, 4, 2, 2, 3)
    changed = features.clone()
    changed[0, 2, 0, 1, 1, 2] += 1  # one channel: the same for all would be normalised away
    available = torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        difference = (fusion(changed, available) - fusion(features, available)).abs().amax(1)
    assert difference.min() > 1e-6


def test_attention_tells_sequences_apart() -> None:
    fusion, features = attention(), torch.randn(1, 3, 4, 2, 2, 2)
    available = torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        found, swapped = fusion(features, available), fusion(features.flip(1), available)
    assert (found - swapped).abs().max() > 1e-4


def test_attention_weights_by_coverage() -> None:
    """A weight of one half counts like one of two equal copies."""
    fusion, features = attention(sequences=2), torch.randn(1, 2, 4, 2, 2, 2)
    twice = AttentionFusion(4, 4)
    twice.load_state_dict({**fusion.state_dict(), "marks": fusion.marks.detach().repeat_interleave(2, dim=0)})
    with torch.no_grad():
        whole = twice(features.repeat_interleave(2, dim=1), torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
        half = fusion(features, torch.tensor([[1.0, 0.5]]))
    torch.testing.assert_close(half, whole, rtol=1e-4, atol=1e-5)


def test_attention_among_fewer_sequences_is_the_same() -> None:
    fusion, features = attention(), torch.randn(1, 3, 4, 2, 2, 2)
    with torch.no_grad():
        masked = fusion(features, torch.tensor([[True, False, True]]))
        fewer = fusion.among([True, False, True])(features[:, [0, 2]], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(fewer, masked, rtol=1e-5, atol=1e-6)
