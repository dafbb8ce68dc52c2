from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from bids_scseg.errors import MissingInputError
from bids_scseg.inference.bundle import sha256
from bids_scseg.inference.verify import Check, probe_image, probe_patterns, shape_problems, verify


def states(checks: tuple[Check, ...]) -> str:
    return " ".join(check.state for check in checks if check.state != "note")


def restamp(folder, **changes):
    """Make the description fit the weights on disk, as someone who tampers would."""
    path = folder / "model.json"
    data = {
        **json.loads(path.read_text()),
        "weights_sha256": sha256(folder / "weights.safetensors"),
        **changes,
    }
    path.write_text(json.dumps(data))


def change_weights(folder, change):
    path = folder / "weights.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    restamp(folder)


def failure(folder) -> str:
    _, checks = verify(folder)
    failed = [check for check in checks if check.state == "fail"]
    assert len(failed) == 1
    after = checks[checks.index(failed[0]) + 1 :]
    assert all(check.state in ("skip", "note") for check in after)
    return f"{failed[0].name}: {failed[0].text}"


@pytest.mark.parametrize("skips", ["mean", "anchor"])
def test_a_sound_bundle(make_bundle, skips):
    made = make_bundle(skips=skips)
    bundle, checks = verify(made.path)
    assert bundle == made
    assert states(checks) == "pass pass pass pass"
    assert checks[3].text.startswith("4 choices of sequences")
    notes = [check.text for check in checks if check.state == "note"]
    assert notes == [
        "the origin of the cord masks that it was trained with is not recorded",
        "no licence of the weights is recorded",
    ]


def test_the_forward_pass_is_the_same_each_time(make_bundle):
    folder = make_bundle().path
    assert verify(folder) == verify(folder)
    assert probe_image(make_bundle()).shape == (1, 3, 4, 4, 8)  # twice the total stride of 2, 2, 4


def test_a_network_that_needs_its_anchor_is_tried_with_each_anchor(make_bundle):
    assert probe_patterns(make_bundle(("A",))) == ((True,),)
    assert probe_patterns(make_bundle(skips="anchor"))[1] == (False, True, False)  # B is the best anchor


def test_a_flipped_bit(make_bundle):
    path = make_bundle().weights
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "checksum: " in failure(path.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("fusion.bias"), "fusion.bias of the network is missing"),
        (lambda arrays: arrays.update(extra=np.zeros(1, np.float16)), "extra is no part of the network"),
        (
            lambda arrays: arrays.update({"fusion.bias": np.zeros(4, np.float16)}),
            "fusion.bias has shape (4,), the network's has (5,)",
        ),
        (
            lambda arrays: arrays.update({"fusion.bias": np.zeros(5, np.int64)}),
            "fusion.bias is stored as I64",
        ),
        (
            lambda arrays: arrays.update({"fusion.bias": np.full(5, np.nan, np.float16)}),
            "weights are finite: ",
        ),
        (
            # finite, but the sum of squares in normalisation is beyond float32
            lambda arrays: arrays.update(
                {n: np.full_like(a, 3e38, np.float32) for n, a in arrays.items() if n.startswith("fusion")}
            ),
            "forward pass on a fixed input: ",
        ),
        (
            lambda arrays: arrays.update({n: np.zeros_like(a) for n, a in arrays.items()}),
            "the same number 0.0 everywhere",
        ),
    ],
    ids=["missing", "extra", "shape", "integers", "nan", "overflow", "zeros"],
)
def test_weights_that_do_not_work(make_bundle, change, message):
    folder = make_bundle().path
    change_weights(folder, change)
    assert message in failure(folder)


def test_a_network_too_large_to_exist_takes_no_memory(make_bundle):
    bundle = make_bundle()
    network = json.loads((bundle.path / "model.json").read_text())["network"]
    restamp(bundle.path, network={**network, "channels": [10**6, 10**7, 10**8]})
    assert "network.channels" in failure(bundle.path)
    restamp(bundle.path, network={**network, "channels": [10**12, 10**12, 10**13]})
    assert "network.channels" in failure(bundle.path)


def test_a_pickle_is_refused_unread(make_bundle):
    folder = make_bundle().path
    os.mkfifo(folder / "model.pt")  # reading it would never end
    assert "other files could run code" in failure(folder)


def test_weights_that_are_a_pickle(make_bundle, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    folder = make_bundle().path
    torch.save(Evil(), folder / "weights.safetensors")
    restamp(folder)
    assert "not readable" in failure(folder)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MissingInputError, match="there is no model"):
        verify(tmp_path / "absent")


def test_problems_are_named_in_order():
    found, wanted = {"a": (1,), "c": (3,)}, {"b": (2,), "c": (4,)}
    assert list(shape_problems(found, wanted)) == [
        "b of the network is missing",
        "a is no part of the network",
        "c has shape (3,), the network's has (4,)",
    ]
