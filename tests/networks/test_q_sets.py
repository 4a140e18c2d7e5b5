"""The Q-network to which models are a set: their order counts for nothing, and its weights serve any number of them."""

import pytest
import torch

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.registry import build
from lightning_t2drl.system import load_scenario
from lightning_t2drl.system.caching import all_caches

SIZES = [4.3, 6.9, 2.1, 5.2, 3.4]
DDQN = {
    "_target_": "lightning_t2drl.cachers.ddqn.DDQNCacher",
    "network": {"_target_": "lightning_t2drl.networks.q_sets.ModelSetQNetwork", "hidden": 16},
}


def make(sizes=SIZES, seen="probabilities", **more):
    torch.manual_seed(0)
    scenario = load_scenario("paper", model_storage_gb=sizes, storage_capacity_gb=9.0, popularity_observation=seen)
    return build(DDQN | more, scenario, key="cacher")


@pytest.mark.parametrize("more", [{}, {"observe_load": True, "observe_cache": True}])
def test_models_in_another_order_are_valued_alike(more):
    order = torch.tensor([3, 0, 4, 1, 2])
    one, other = make(**more), make([SIZES[m] for m in order], **more)
    other.load_state_dict(one.state_dict())
    caches, feasible = all_caches(one.scenario)
    caches = caches[feasible]
    popularity = torch.rand(len(caches), 5).softmax(-1)
    held, load = caches.flip(0), torch.rand(len(caches), 3)

    def value(cacher, order):
        state = {"popularity": popularity[:, order], "load": load, "cache": held[:, order]}
        return cacher.network.value(cacher.inputs(state), caches[:, order])

    values = value(one, torch.arange(5))
    torch.testing.assert_close(values, value(other, order))
    assert values.std() > 1e-3
    state = one.inputs({"popularity": popularity, "load": load, "cache": held})
    torch.testing.assert_close(one.network(state).diagonal(), values)


def test_a_state_means_its_probabilities():
    by_state, by_probabilities = make(seen="state"), make()
    states = torch.eye(3)
    torch.testing.assert_close(by_state.network(states), by_probabilities.network(states @ by_state.scenario.demands))


@pytest.mark.parametrize("env", ["cells7", "mixed"])
def test_its_weights_serve_other_cells_and_catalogues(env):
    scenario = load_scenario(env)
    cacher = build(DDQN, scenario, key="cacher")
    cacher.load_state_dict(make().state_dict())
    cache = cacher.decide(EdgeAIGCEnv(scenario, 2).observe())
    assert cache.shape == (2, scenario.cells, scenario.models)
