"""Devices of a run, without any: which processes are started, and that all end."""

from __future__ import annotations

import pytest

from bids_scseg.errors import MissingToolError, OutputError, ScsegError
from bids_scseg.inference import pool
from bids_scseg.inference.client import KilledAtStartError
from bids_scseg.inference.device import device_tokens


@pytest.mark.parametrize(
    ("choice", "visible", "at_most", "expected"),
    [
        ("cpu", 4, 4, ("cpu",)),
        ("auto", 0, 4, ("auto",)),
        ("auto", 1, 4, ("auto",)),
        ("auto", 3, 8, ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda", 4, 2, ("cuda:0", "cuda:1")),
        ("cuda", 4, 0, ("cuda:0",)),
        ("cuda:2", 4, 4, ("cuda:2",)),
    ],
)
def test_devices_of_a_choice(choice, visible, at_most, expected):
    assert device_tokens(choice, visible=visible, at_most=at_most) == expected


@pytest.mark.parametrize(
    ("first", "at_most", "expected"),
    [
        ("cuda:1", 8, ("cuda:1", "cuda:2")),
        ("cuda:2", 8, ("cuda:2",)),
        ("cuda:1", 1, ("cuda:1",)),
        ("cpu", 8, ("auto",)),
    ],
)
def test_devices_before_the_first_that_works_are_not_asked_again(first, at_most, expected):
    assert device_tokens("auto", visible=3, at_most=at_most, first=first) == expected


class Pretended:
    """An inference process on a machine with three devices, the last of which is broken."""

    started: list[str]
    ended: list[str]
    broken = ""
    auto = "auto"  # what that becomes
    error: type[ScsegError] = MissingToolError

    def __init__(self, token: str, **_: object) -> None:
        self.device, self.visible, self.address, self.warning = token, 3, f"/{token}", None
        self.description = token

    def __enter__(self):
        if self.device == self.broken:
            raise self.error("does not start")
        self.started.append(self.device)
        self.device = self.auto if self.device == "auto" else self.device
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.append(self.device)


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(pool, "InferenceServer", Pretended)
    monkeypatch.setattr(Pretended, "started", [], raising=False)
    monkeypatch.setattr(Pretended, "ended", [], raising=False)
    return Pretended


def test_each_device_has_one_process(pretended):
    with pool.InferencePool("cuda", threads=1, at_most=8) as running:
        assert [server.address for server in running.servers] == ["/cuda", "/cuda:1", "/cuda:2"]
        assert running.description == "cuda, cuda:1, cuda:2"
        assert pretended.ended == []
    assert sorted(pretended.ended) == sorted(pretended.started) == ["cuda", "cuda:1", "cuda:2"]


def test_if_one_does_not_start_the_others_end(pretended, monkeypatch):
    monkeypatch.setattr(pretended, "broken", "cuda:2")
    with pytest.raises(MissingToolError), pool.InferencePool("cuda", at_most=8):
        pass
    assert sorted(pretended.ended) == sorted(pretended.started) == ["cuda", "cuda:1"]


@pytest.mark.parametrize("error", [MissingToolError, KilledAtStartError])
def test_auto_does_without_a_further_device_that_cannot_be_used_and_says_so(pretended, monkeypatch, error):
    monkeypatch.setattr(pretended, "broken", "cuda:1")
    monkeypatch.setattr(pretended, "error", error)
    with pool.InferencePool("auto", at_most=8) as running:
        assert running.description == "auto, cuda:2"
        assert running.warning == "inference runs without cuda:1 (does not start)"
    assert sorted(pretended.ended) == sorted(pretended.started) == ["auto", "cuda:2"]


@pytest.mark.parametrize(
    ("choice", "broken", "error"),
    [
        ("auto", "auto", MissingToolError),
        ("auto", "cuda:1", OutputError),  # no fault of the device
        ("cuda:1", "cuda:1", MissingToolError),
    ],
)
def test_what_was_asked_for_by_name_or_is_no_fault_of_a_further_device_ends_the_run(
    pretended, monkeypatch, choice, broken, error
):
    monkeypatch.setattr(pretended, "broken", broken)
    monkeypatch.setattr(pretended, "error", error)
    with pytest.raises(error), pool.InferencePool(choice, at_most=8):
        pass
    assert sorted(pretended.ended) == sorted(pretended.started)


def test_a_choice_without_trouble_has_no_warning(pretended):
    with pool.InferencePool("auto", at_most=8) as running:
        assert (running.warning, running.left_out) == (None, ())


@pytest.mark.parametrize(("auto", "others"), [("cuda:1", ["cuda:2"]), ("cuda:2", []), ("cpu", [])])
def test_auto_starts_no_process_on_a_device_that_the_first_has_passed_over(
    pretended, monkeypatch, auto, others
):
    monkeypatch.setattr(pretended, "auto", auto)
    with pool.InferencePool("auto", at_most=8) as running:
        assert [server.device for server in running.servers] == [auto, *others]
    assert pretended.started == ["auto", *others]
