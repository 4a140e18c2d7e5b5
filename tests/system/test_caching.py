"""Caches as sets of models: what fits, how a decision is cut down, how space is filled, and which subsets there are."""

import pytest
import torch

from lightning_t2drl.system import all_caches, amend_cache, fill_in_order, load_scenario
from lightning_t2drl.system.caching import fits


def world(sizes, capacity):
    return load_scenario("paper", model_storage_gb=sizes, storage_capacity_gb=capacity)


@pytest.mark.parametrize(
    ("sizes", "capacity", "expected"),
    [
        ([0.1, 0.2, 0.3], 0.6, True),  # 0.1 + 0.2 + 0.3 is not 0.6 in binary
        ([4.3, 6.9, 2.1, 5.2], 18.5, True),
        ([4.3, 6.9, 2.1, 5.2], 18.4999, False),
    ],
)
def test_exactly_full_fits_whatever_the_rounding(sizes, capacity, expected):
    scenario = world(sizes, capacity)
    everything = torch.ones(len(sizes), dtype=torch.bool)
    assert fits(scenario, everything).item() is expected
    assert amend_cache(scenario, everything).all().item() is expected
    assert fill_in_order(scenario, torch.zeros(len(sizes))).all().item() is expected


def test_a_decision_is_cut_down_in_index_order():
    scenario = world([2.0, 4.0, 1.0, 3.0], 5.0)
    asked = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()
    # The sum of all that was asked for counts, so nothing is kept behind the first model that did not fit.
    kept = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]).bool()
    assert torch.equal(amend_cache(scenario, asked), kept)


def test_filling_goes_by_priority_and_skips_what_no_longer_fits():
    scenario = world([2.0, 4.0, 1.0, 3.0], 5.0)
    priority = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    taken = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 0]]).bool()  # ties by index
    assert torch.equal(fill_in_order(scenario, priority), taken)


def test_subsets_are_all_there_and_their_index_is_their_bits():
    scenario = world([2.0, 4.0, 1.0], 5.0)
    subsets, feasible = all_caches(scenario)
    assert (subsets * torch.tensor([1, 2, 4])).sum(-1).tolist() == list(range(8))
    assert feasible.tolist() == [True, True, True, False, True, True, True, False]  # {0, 1} needs 6, all need 7
