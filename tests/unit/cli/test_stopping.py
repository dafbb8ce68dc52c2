"""Interrupted commands of the toolbox, in processes of their own: exit code, last words, no child left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_experiment import write_cases

from bids_scseg.cli.app import INTERRUPTED, guarded, stop_on_sigterm, stoppable
from bids_scseg.cli.train import CHECKPOINT, _last_words
from bids_scseg.training.checkpoint import TENSORS

PATIENCE_S = 120
SIGNALS = [signal.SIGTERM, signal.SIGINT]
CONFIG = """
name = "endless"
recipe = "cord-lesion"
iterations = 1000000
checkpoint_every = 1
precision = "32-true"
threads = 1
tensorboard = false
network = { channels = [2, 2, 2, 2, 2], skips = "mean" }
sampling = { patch_vox = [16, 16, 16], batch = 1 }
"""


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # a shell starts what runs in its background with this signal ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop_on_sigterm()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def begun(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process that leads a group of its own."""
    # as from a terminal: a background job of a script would ignore Ctrl-C
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bids_scseg.cli.tools import main; sys.exit(main())"
    )
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)


def stopped(
    run: subprocess.Popen[str], number: signal.Signals, *, when: Callable[[], bool], group: bool = False
) -> list[str]:
    """What the command said, once the signal has ended it; a terminal sends it to the whole group."""
    try:
        until = time.monotonic() + PATIENCE_S
        while not when():
            assert run.poll() is None, run.stderr.read()  # type: ignore[union-attr]
            assert time.monotonic() < until
            time.sleep(0.05)
        os.killpg(run.pid, number) if group else run.send_signal(number)
        return run.communicate(timeout=PATIENCE_S)[1].splitlines()
    finally:
        run.kill()
        run.wait()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_training_is_never_taken_for_a_finished_one(number: signal.Signals, tmp_path: Path) -> None:
    write_cases(tmp_path / "data", 3)
    config, out = tmp_path / "endless.toml", tmp_path / "run"
    config.write_text(CONFIG, encoding="utf-8")
    run = begun("train", config, "--data", tmp_path / "data", "--out", out)
    lines = stopped(run, number, when=lambda: (out / "checkpoint.json").is_file())
    assert run.returncode == INTERRUPTED
    assert lines[-1] == f"stopped; the same command goes on from the last checkpoint in {out}"
    assert not [line for line in lines if "Traceback" in line or "Error" in line]
    assert not (out / "bundle").exists()
    assert json.loads((out / "checkpoint.json").read_text())["step"] >= 1


def test_the_workers_of_a_stopped_command_end_at_once(tmp_path: Path) -> None:
    run = begun("demo", tmp_path / "out", "--subjects", "2")
    workers = list[int]()

    def at_work() -> bool:
        workers[:] = leaders(run.pid)
        return len(workers) == 2 and any(tmp_path.rglob("*.nii.gz"))

    lines = stopped(run, signal.SIGTERM, when=at_work)
    assert (run.returncode, lines) == (INTERRUPTED, ["scseg: interrupted"])
    assert gone(workers)


@pytest.mark.slow
def test_ctrl_c_reaches_the_training_alone_and_it_ends_what_draws_its_sessions(tmp_path: Path) -> None:
    config, out = tmp_path / "endless.toml", tmp_path / "run"
    config.write_text(f"{CONFIG}data = {{ generators = 2, held_out = 0 }}\n", encoding="utf-8")
    run = begun("train", config, "--synthetic", "--out", out)
    makers = list[int]()

    def at_work() -> bool:
        makers[:] = leaders(run.pid)
        return len(makers) == 2

    lines = stopped(run, signal.SIGINT, when=at_work, group=True)
    assert run.returncode == INTERRUPTED
    assert lines == [f"stopped before the first checkpoint; the same command begins anew in {out}"]
    assert gone(makers)


def leaders(pid: int) -> list[int]:
    """Children of a process that lead groups of their own."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split() if _leads(int(child))]


def _leads(pid: int) -> bool:
    with suppress(ProcessLookupError):
        return os.getpgid(pid) == pid
    return False


def gone(pids: list[int]) -> bool:
    """Whether the processes end in a little while."""
    until = time.monotonic() + 20
    while time.monotonic() < until and any(map(alive, pids)):
        time.sleep(0.05)
    return not any(map(alive, pids))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_with_one_line_of_the_commands_own(
    number: signal.Signals, handlers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, stoppable(lambda: "stopped; go on like this"):
        os.kill(os.getpid(), number)
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err == "stopped; go on like this\n"


@pytest.mark.parametrize(("ending", "code"), [(None, INTERRUPTED), (KeyboardInterrupt, INTERRUPTED)])
def test_what_ends_a_command_without_a_number_is_no_success(
    ending: type[BaseException] | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        raise SystemExit if ending is None else ending

    assert guarded("scseg", run, after_stop="go on") == code
    assert capsys.readouterr().err == "scseg: interrupted; go on\n"


@pytest.mark.parametrize("code", [0, 3])
def test_a_number_that_a_command_ends_with_stays(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise SystemExit(code)

    with pytest.raises(SystemExit) as ended, stoppable(lambda: "stopped"):
        guarded("scseg", run)
    assert ended.value.code == code
    assert not capsys.readouterr().err


def test_the_line_says_what_is_there_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CHECKPOINT == TENSORS
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert _last_words(tmp_path).startswith("stopped before the first checkpoint; ")
    (tmp_path / CHECKPOINT).touch()
    assert _last_words(tmp_path).startswith("stopped; the same command goes on from the last checkpoint in ")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not _last_words(tmp_path)
