"""What each node of a session will need, by its images."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bids_builders import image, lattice, study
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.bids import memory
from bids_scseg.bids.memory import LATE_GB, NODES, REGISTRATION_GB, inference_gb, node_memory, session_sizes
from bids_scseg.bids.plan import make_plan
from bids_scseg.bids.table import plans_to_json
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.study import SequencePlan

RECIPE = load_recipe("cord-lesion")
SLABS = (image("acq-sag_chunk-1_T2w", lattice(low=220)), image("acq-sag_chunk-2_T2w", lattice()))


def sequence(*files, name="T2Sag"):
    return SequencePlan(name=name, files=files)


def needs(*sequences, **more):
    return dict(node_memory(sequences, RECIPE, **more))


def test_sizes_by_hand():
    # 14 x 250 x 300 voxels; 240 mm and two margins of 10 mm at 0.5 mm, 48 x 48 across, six sequences
    sizes = session_sizes([sequence(image("acq-sag_T2w"))], RECIPE)
    assert (sizes.images, sizes.largest, sizes.total, sizes.registered) == (1, 1.05e6, 1.05e6, False)
    assert sizes.prepared == pytest.approx(48 * 48 * (240 + 20) / 0.5 * 6)
    both = session_sizes([sequence(*SLABS)], RECIPE)
    assert (both.images, both.largest, both.total, both.registered) == (2, 1.05e6, 2.1e6, True)


def test_every_node_has_an_estimate_and_nothing_needs_nothing():
    assert tuple(needs(sequence(image("acq-sag_T2w")))) == NODES
    assert node_memory([], RECIPE) == ()


@given(slices=st.integers(20, 400), others=st.integers(1, 400))
def test_cords_need_by_the_largest_image_and_what_holds_all_by_their_sum(slices, others):
    first, second = image("acq-sag_T2w", lattice(slices=slices)), image("acq-ax_T2w", lattice(slices=others))
    alone, both = needs(sequence(first)), needs(sequence(first), sequence(second, name="T2Ax"))
    assert all(both[node] >= alone[node] for node in NODES)
    assert (both["cord"] > alone["cord"]) <= (others > slices)
    assert both["write"] > alone["write"] and both["report"] > alone["report"]
    large = needs(sequence(first), sequence(image("acq-ax_T2w", lattice(slices=400)), name="T2Ax"))
    assert large["prepare"] > alone["prepare"]


def test_registration_and_another_programs_network_count_where_they_run():
    apart, registered = needs(sequence(*SLABS, name="T2Ax")), needs(sequence(*SLABS, name="T2Sag"))
    assert registered["prepare"] - apart["prepare"] == pytest.approx(REGISTRATION_GB)
    assert {**registered, "prepare": 0} == {**apart, "prepare": 0}
    one = needs(sequence(SLABS[0]))
    late = needs(sequence(SLABS[0]), late=True)
    assert late["segment"] - one["segment"] == pytest.approx(LATE_GB)
    assert {node: late[node] for node in NODES if node != "segment"} == {
        node: one[node] for node in NODES if node != "segment"
    }


def test_the_plan_states_all_and_the_largest():
    plan = make_plan(study(image("acq-sag_T2w")), RECIPE)
    assert plan.memory_gb == max(need for _, need in plan.node_memory)
    (session,) = plans_to_json([plan])["sessions"]
    assert session["node_memory_gb"] == dict(plan.node_memory)
    assert (session["memory_gb"], session["inference_gb"]) == (plan.memory_gb, plan.inference_gb)
    refused = make_plan(study(), RECIPE)
    assert (refused.node_memory, refused.memory_gb, refused.inference_gb) == ((), 0.0, 0.0)


def test_a_wider_network_needs_more_in_the_inference_process():
    # the recipe's own is the measured one: 0.6 + 1.4
    assert inference_gb(RECIPE) == 2.0
    wide = replace(RECIPE, network=replace(RECIPE.network, channels=(64, 128, 256, 512, 640)))
    assert inference_gb(wide) == pytest.approx(0.6 + 2 * 1.4)
    small = replace(RECIPE, network=replace(RECIPE.network, channels=(8, 16, 32, 64, 80)))
    assert inference_gb(small) == memory.LEAST_INFERENCE_GB
