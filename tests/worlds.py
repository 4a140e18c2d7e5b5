"""Random worlds for tests."""

import torch

from lightning_t2drl.system import amend_cache, load_scenario
from lightning_t2drl.system.world import initial_state


def slots_of(scenario, count, seed=0):
    """Inputs of `count` slots as `serve` takes them, [count, U], and random feasible caches."""
    generator = torch.Generator().manual_seed(seed)
    world = initial_state(scenario, count, generator)
    asked = torch.rand(count, scenario.models, generator=generator) < 0.5
    slot = {key: world[key][:, 0] for key in ("request", "input_bits", "output_bits", "gain")}
    return slot | {"cache": amend_cache(scenario, asked)}


def paper(**overrides):
    return load_scenario("paper", **overrides)
