"""Memory and device tokens, without any device: several are used, none twice, none for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.workflows.budget import Budget, Device

GPUS = tuple(Device(address=f"/s{n}", description=f"cuda:{n}") for n in range(3))


def test_every_device_is_used_before_one_is_shared():
    budget = Budget(devices=GPUS)
    assert [budget.take(label) for label in "abc"] == list(GPUS)
    budget.give("b")
    assert budget.take("d") == GPUS[1]


def test_without_devices_there_is_no_token():
    assert Budget().take("a") is None


@given(
    devices=st.integers(1, 4),
    moves=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=60),
)
def test_no_device_has_two_sessions_while_another_has_none(devices, moves):
    tokens = tuple(Device(address=f"/{n}", description=str(n)) for n in range(devices))
    budget, held = Budget(devices=tokens), {}
    for label, starts in moves:
        if starts and label not in held:
            counts = [list(held.values()).count(token) for token in tokens]
            held[label] = budget.take(label)
            assert counts[tokens.index(held[label])] == min(counts)
        elif not starts and held.pop(label, None) is not None:
            budget.give(label)


def test_sessions_wait_for_memory_but_one_alone_never_does():
    budget = Budget(memory_gb=4.0)
    assert budget.fits(9.0)  # too large, but nothing else runs: it is told, and tried
    budget.take("a", 2.5)
    assert budget.fits(1.5) and not budget.fits(1.6)
    budget.give("a")
    budget.give("never there")
    assert budget.fits(9.0)
    budget.take("b", 9.0)
    budget.clear()
    assert budget.fits(4.0)


@given(st.lists(st.floats(0.1, 8.0), min_size=1, max_size=20), st.floats(1.0, 16.0))
def test_what_runs_at_once_fits_and_everything_runs(needs, memory):
    budget, waiting, running, done = Budget(memory_gb=memory), list(enumerate(needs)), {}, 0
    while waiting or running:
        while waiting and budget.fits(waiting[0][1]):
            number, need = waiting.pop(0)
            budget.take(str(number), need)
            running[str(number)] = need
        assert len(running) == 1 or sum(running.values()) <= memory + 1e-9
        label = next(iter(running))
        running.pop(label)
        budget.give(label)
        done += 1
    assert done == len(needs)
