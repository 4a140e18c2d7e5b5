"""Evaluation: which worlds are played does not depend on how many."""

import torch

from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.cachers.popular import PopularCacher, PopularConfig
from lightning_t2drl.loop.evaluation import evaluate
from lightning_t2drl.system import load_scenario


def test_the_first_episodes_are_the_same_however_many_are_played():
    scenario = load_scenario("paper", users=7, frames_per_episode=3)
    pair = PopularCacher(scenario, PopularConfig()), EqualAllocator(scenario, EqualConfig())
    few, many, other = (evaluate(scenario, *pair, n, seed)["utility"] for n, seed in ((3, 1), (40, 1), (3, 2)))
    torch.testing.assert_close(few, many[:3], rtol=1e-5, atol=1e-6)
    assert not torch.isclose(few, other).any()
