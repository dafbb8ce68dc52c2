from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bids_scseg.errors import DataError
from bids_scseg.training import checkpoint
from bids_scseg.training.checkpoint import (
    Progress,
    has_checkpoint,
    load_checkpoint,
    read_weights,
    save_checkpoint,
)


def trained(seed: int, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = nn.Conv3d(2, 3, 3).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(steps):
        network(torch.ones(1, 2, 4, 4, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network, optimizer


def save(folder: Path, seed: int, step: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    network, optimizer = trained(seed)
    save_checkpoint(
        folder, network, average=None, optimizer=optimizer, progress=Progress(step=step, examples=2 * step)
    )
    return network, optimizer


def test_round_trip_keeps_values_and_layout(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    network, optimizer = save(tmp_path, 0, 5)
    other, other_optimizer = trained(1, steps=0)
    progress = load_checkpoint(tmp_path, other, average=None, optimizer=other_optimizer)
    assert progress == Progress(step=5, examples=10)
    assert torch.equal(network.weight, other.weight)  # type: ignore[arg-type]
    one, two = optimizer.state[network.weight], other_optimizer.state[other.weight]  # type: ignore[index]
    assert one.keys() == two.keys()
    assert torch.equal(one["exp_avg_sq"], two["exp_avg_sq"])
    assert one["exp_avg_sq"].stride() == two["exp_avg_sq"].stride()


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tmp_path / name, 0, 5)
    one, two = (tmp_path / name / "checkpoint.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_checkpoints_of_the_first_release_are_read(tmp_path: Path) -> None:
    network, optimizer = trained(0)
    tensors = {f"weights.{key}": value.clone() for key, value in network.state_dict().items()}
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    checkpoint.save_file(tensors, tmp_path / "checkpoint.safetensors", {"step": "7"})
    progress = load_checkpoint(tmp_path, network, average=None, optimizer=optimizer)
    assert progress == Progress(step=7, examples=-1)


def test_a_write_that_breaks_off_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = save(tmp_path, 0, 5)

    def torn(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", torn)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1, 6)
    other, optimizer = trained(2)
    assert load_checkpoint(tmp_path, other, average=None, optimizer=optimizer).step == 5
    assert torch.equal(network.weight, other.weight)  # type: ignore[arg-type]


def test_damage_and_strangers_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 0, 5)
    wider = nn.Conv3d(2, 4, 3)
    with pytest.raises(DataError, match="another network"):
        load_checkpoint(tmp_path, wider, average=None, optimizer=torch.optim.SGD(wider.parameters()))
    network, _ = trained(0)
    with pytest.raises(DataError, match="optimizer's state"):
        load_checkpoint(tmp_path, network, average=None, optimizer=torch.optim.SGD([network.bias]))  # type: ignore[list-item]
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not readable"):
        read_weights(tmp_path)


def test_the_weights_of_a_run_are_found_in_its_bundle(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no weights"):
        read_weights(tmp_path)
    checkpoint.save_file({"a": torch.ones(2, dtype=torch.float16)}, tmp_path / "weights.safetensors")
    assert read_weights(tmp_path)["a"].dtype == torch.float32
