from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bids_scseg.errors import DataError, SessionError
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.model import NetworkSpec, Recipe
from bids_scseg.training.checkpoint import Progress, load_weights
from bids_scseg.training.config import LossConfig, OptimizerConfig, SamplingConfig, TrainingConfig
from bids_scseg.training.fit import (
    device_kind,
    devices,
    examples_in_all,
    fit,
    machine_in_words,
    polynomial,
)
from bids_scseg.training.sample import Sample


@dataclass(frozen=True)
class Blobs:
    """Bright cubes on noise: learnable in a few steps."""

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        image = rng.standard_normal((1, 8, 8, 8)).astype(np.float32) * 0.1
        label = np.zeros((8, 8, 8), np.uint8)
        label[2:5, 2:5, 2:5] = 1
        image[0, label == 1] += 2
        return Sample(
            image=image, coverage=np.ones(image.shape, bool), label=label, available=np.array([True])
        )

    def summary(self) -> dict[str, object]:
        return {"source": "blobs"}


def tiny_recipe() -> Recipe:
    spec = NetworkSpec(
        channels=(4, 8), strides=((1, 1, 1), (2, 2, 2)), sequences=("image",), deep_supervision=1
    )
    return replace(load_recipe("cord-finder"), network=spec)


def tiny_config(**changes: object) -> TrainingConfig:
    config = TrainingConfig(
        name="tiny",
        recipe="cord-finder",
        iterations=6,
        checkpoint_every=3,
        precision="32-true",
        tensorboard=False,
        threads=1,
        optimizer=OptimizerConfig(name="adamw", lr=0.01, ema=0.5),
        sampling=SamplingConfig(patch_vox=(8, 8, 8), batch=2),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint.safetensors")


def test_it_learns_and_leaves_its_traces(tmp_path: Path) -> None:
    config = tiny_config(iterations=50)
    trained = fit(config, Blobs(), recipe=tiny_recipe(), out=tmp_path)
    example = Blobs().sample(999)
    with torch.no_grad():
        logits = trained.network(torch.from_numpy(example.image)[None], torch.tensor([[True]]))[0]
    found = logits.argmax(1)[0].numpy() == 1
    truth = example.label == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8
    with (tmp_path / "log.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["iteration"] for row in rows] == ["25", "50"]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert all(0 <= float(row["waiting"]) <= 1 and float(row["seconds"]) > 0 for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "data.json", "log.csv", "checkpoint.json", "checkpoint.safetensors",
    }  # fmt: skip


class Killed(Exception):
    """Stands for the end of a process."""


@dataclass(frozen=True)
class KilledBlobs(Blobs):
    """The same examples, until one is asked for at which the process ends."""

    last: int

    def sample(self, index: int) -> Sample:
        if index >= self.last:
            raise Killed
        return Blobs.sample(self, index)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    config = tiny_config(
        iterations=7,
        optimizer=OptimizerConfig(name=optimizer, lr=0.01, ema=0.5, warmup=2),  # type: ignore[arg-type]
        sampling=SamplingConfig(patch_vox=(8, 8, 8), batch=2, accumulate=2),
        log_every=1,
    )
    fit(config, Blobs(), recipe=tiny_recipe(), out=tmp_path / "whole")
    # an iteration takes 4 examples: the process ends in the sixth, two iterations after the checkpoint
    with pytest.raises(Killed):
        fit(config, KilledBlobs(last=21), recipe=tiny_recipe(), out=tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "checkpoint.json").read_text()) == {"step": 3, "examples": 12}
    assert len((tmp_path / "parts" / "log.csv").read_text().splitlines()) == 6
    fit(config, Blobs(), recipe=tiny_recipe(), out=tmp_path / "parts")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert one.keys() == two.keys()
    assert any(key.startswith("average") for key in one)
    assert any(key.startswith("optimizer") for key in one)
    assert all(torch.equal(one[key], two[key]) for key in one)
    with (tmp_path / "parts" / "log.csv").open(newline="") as handle:
        assert [row["iteration"] for row in csv.DictReader(handle)] == [str(n) for n in range(1, 8)]


def test_a_batch_and_the_same_examples_accumulated_give_one_step(tmp_path: Path) -> None:
    loss = LossConfig(overlap_weight=0.0)  # the overlap of a batch is no mean over its parts
    for name, batch, accumulate in (("whole", 4, 1), ("parts", 1, 4)):
        config = tiny_config(
            iterations=1,
            loss=loss,
            optimizer=OptimizerConfig(lr=0.1, momentum=0.0),
            sampling=SamplingConfig(patch_vox=(8, 8, 8), batch=batch, accumulate=accumulate),
        )
        fit(config, Blobs(), recipe=tiny_recipe(), out=tmp_path / name)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


def test_going_on_with_another_configuration_is_refused(tmp_path: Path) -> None:
    fit(tiny_config(iterations=1), Blobs(), recipe=tiny_recipe(), out=tmp_path)
    with pytest.raises(DataError, match=r"optimizer\.lr"):
        fit(
            tiny_config(optimizer=OptimizerConfig(name="adamw", lr=0.02, ema=0.5)),
            Blobs(),
            recipe=tiny_recipe(),
            out=tmp_path,
        )


def test_a_run_of_fewer_iterations_than_it_has_made_is_refused(tmp_path: Path) -> None:
    fit(tiny_config(), Blobs(), recipe=tiny_recipe(), out=tmp_path)
    with pytest.raises(DataError, match=r"made 6 iterations; expected at most 5, .* Set iterations to 6 for"):
        fit(tiny_config(iterations=5), Blobs(), recipe=tiny_recipe(), out=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["iterations"] == 6
    assert fit(tiny_config(), Blobs(), recipe=tiny_recipe(), out=tmp_path).iterations == 6


def test_examples_of_all_parts_of_a_run_are_counted(tmp_path: Path) -> None:
    trained = fit(tiny_config(iterations=2), Blobs(), recipe=tiny_recipe(), out=tmp_path)
    assert trained.examples == 4
    larger = SamplingConfig(patch_vox=(8, 8, 8), batch=3, accumulate=2)
    trained = fit(tiny_config(iterations=3, sampling=larger), Blobs(), recipe=tiny_recipe(), out=tmp_path)
    assert trained.examples == 4 + 6 == json.loads((tmp_path / "checkpoint.json").read_text())["examples"]


@pytest.mark.parametrize(("count", "world"), [(1, 1), (3, 3), (0, 4)])
def test_every_device_uses_up_examples(monkeypatch: pytest.MonkeyPatch, count: int, world: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = tiny_config(devices=count)
    assert examples_in_all(config, Progress()) == 6 * 2 * world
    assert examples_in_all(config, Progress(step=4, examples=8)) == 8 + 2 * 2 * world
    # checkpoints of the first release do not say: one device it was
    assert examples_in_all(config, Progress(step=6, examples=-1)) == 12


@dataclass(frozen=True)
class StoppedBlobs(Blobs):
    """The same examples; a signal comes with one of them."""

    number: signal.Signals
    at: int

    def sample(self, index: int) -> Sample:
        if index == self.at:
            os.kill(os.getpid(), self.number)
        return Blobs.sample(self, index)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_is_an_interruption_whatever_lightning_makes_of_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_config(), StoppedBlobs(number=number, at=8), recipe=tiny_recipe(), out=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads((tmp_path / "checkpoint.json").read_text())["step"] == 3


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    class Broken(torch.nn.Module):
        def forward(self, outputs: list[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
            return outputs[0].sum() * float("nan")

    with pytest.raises(DataError, match="not finite in iteration 1"):
        fit(tiny_config(), Blobs(), recipe=tiny_recipe(), out=tmp_path, loss=Broken())
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_mixed_precision_and_determinism_run(tmp_path: Path) -> None:
    config = tiny_config(precision="bf16-mixed", deterministic=True, iterations=2)
    for name in ("one", "two"):
        fit(config, Blobs(), recipe=tiny_recipe(), out=tmp_path / name)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_tensorboard_gets_the_logs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tiny_config(tensorboard=True, log_every=2), Blobs(), recipe=tiny_recipe(), out=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [2, 4, 6]


def test_devices_that_are_not_there_are_refused() -> None:
    assert devices(tiny_config(accelerator="cpu", devices=0))["devices"] == 1
    assert "find_unused" in devices(tiny_config(accelerator="cpu", devices=2))["strategy"]
    with pytest.raises(DataError, match="no GPU is visible; expected at most"):
        devices(tiny_config(accelerator="cpu", devices=5000))
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="no GPU"):
            devices(tiny_config(accelerator="gpu"))


def test_a_gpu_is_used_for_training_and_judging_unless_the_configuration_says_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_kind(tiny_config(accelerator="cpu")) == "cpu"
    assert device_kind(tiny_config(accelerator="auto")) == "cuda"


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_fit import Blobs, tiny_config, tiny_recipe
from bids_scseg.training.config import SamplingConfig
from bids_scseg.training.fit import fit

if __name__ == "__main__":
    count = int(sys.argv[3])
    config = tiny_config(
        iterations=int(sys.argv[4]), checkpoint_every=5, accelerator="cpu", devices=count, threads=1,
        sampling=SamplingConfig(patch_vox=(8, 8, 8), batch=1, accumulate=2 // count),
    )
    fit(config, Blobs(), recipe=tiny_recipe(), out=Path(sys.argv[2]))
"""


def start(script: Path, out: Path, *, count: int = 1, iterations: int = 300) -> subprocess.Popen[bytes]:
    script.write_text(RUN, encoding="utf-8")
    here = str(Path(__file__).parent)
    return subprocess.Popen([sys.executable, script, here, out, str(count), str(iterations)])


@pytest.mark.slow
def test_sigkill_and_restart_give_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    assert start(script, tmp_path / "whole").wait() == 0
    run, state = start(script, tmp_path / "parts"), tmp_path / "parts" / "checkpoint.json"
    while run.poll() is None and not (state.exists() and json.loads(state.read_text())["step"] >= 20):
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert json.loads(state.read_text())["step"] < 300
    assert start(script, tmp_path / "parts").wait() == 0
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_two_processes_see_the_examples_that_one_sees(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    for count in (1, 2):
        assert start(script, tmp_path / str(count), count=count, iterations=10).wait() == 0
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(tiny_config(iterations=1), Blobs(), recipe=tiny_recipe(), out=tmp_path)
    wider = replace(tiny_recipe(), network=replace(tiny_recipe().network, channels=(6, 8)))
    with pytest.raises(DataError, match="another network"):
        fit(tiny_config(), Blobs(), recipe=wider, out=tmp_path)


def test_training_can_start_from_the_average_of_another(tmp_path: Path) -> None:
    trained = fit(tiny_config(), Blobs(), recipe=tiny_recipe(), out=tmp_path / "one")
    start = tiny_config(initial=str(tmp_path / "one"), iterations=1, optimizer=OptimizerConfig(lr=0.0))
    again = fit(start, Blobs(), recipe=tiny_recipe(), out=tmp_path / "two")
    for name, value in trained.network.state_dict().items():
        assert torch.allclose(value, again.network.state_dict()[name])
    with pytest.raises(DataError, match="no weights"):
        load_weights(tmp_path, trained.network)


def test_looks_at_held_out_cases_are_logged(tmp_path: Path) -> None:
    config = tiny_config()
    config = replace(config, validation=replace(config.validation, every=3))
    seen = []

    def look(network: torch.nn.Module, iteration: int) -> dict[str, float]:
        seen.append((iteration, network.training))
        return {"dice": 0.5}

    fit(config, Blobs(), recipe=tiny_recipe(), out=tmp_path, look=look)
    assert seen == [(3, False), (6, False)]
    assert (tmp_path / "validation.csv").read_text().splitlines()[1] == "3,0.5"


def test_polynomial_schedule() -> None:
    factor = polynomial(OptimizerConfig(power=0.9, warmup=10), 100)
    assert factor(0) == pytest.approx(0.1)
    assert factor(50) == pytest.approx(0.5**0.9)
    assert factor(100) == 0.0


def test_what_is_wrong_with_an_example_ends_the_training_in_its_words(tmp_path: Path) -> None:
    class Broken(Blobs):
        def sample(self, index: int) -> Sample:
            if index < 4:
                return super().sample(index)
            raise DataError("image with values that are not finite", file="sub-07")

    with pytest.raises(DataError, match=r"^sub-07: image with values that are not finite$"):
        fit(tiny_config(), Broken(), recipe=tiny_recipe(), out=tmp_path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "draws patches was killed"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "draws patches was killed"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12"), "memory ran out"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out"),
        (MemoryError(), "memory ran out"),
    ],
)
def test_want_of_memory_is_said_in_words(tmp_path: Path, error: Exception, words: str) -> None:
    class Failing(torch.nn.Module):
        def forward(self, outputs: list[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(SessionError, match=f"{words}.*sampling.workers"):
        fit(tiny_config(), Blobs(), recipe=tiny_recipe(), out=tmp_path, loss=Failing())


def test_mistakes_of_the_program_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Caught KeyError"), machine_in_words(tmp_path):
        raise RuntimeError("Caught KeyError in DataLoader worker process 0.")
