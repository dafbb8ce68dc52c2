from __future__ import annotations

from bids_scseg.network.spec import EncoderContract, total_stride
from bids_scseg.recipe.model import NetworkSpec


def test_the_paper_downsamples_to_4_by_4_by_8_mm() -> None:
    # 0.5 mm voxels: 4 mm / 0.5 mm = 8 in plane, 8 mm / 0.5 mm = 16 along S-I
    assert total_stride(NetworkSpec()) == (8, 8, 16)


def test_the_contract_repeats_the_specification() -> None:
    spec = NetworkSpec()
    contract = EncoderContract.of(spec)
    assert (contract.channels, contract.strides) == (spec.channels, spec.strides)
