"""Cachers without learning: random, popular, oracle, most requested, least recently used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_t2drl.allocators.exact import ExactAllocator, ExactConfig
from lightning_t2drl.cachers.lru import LRUCacher, LRUConfig
from lightning_t2drl.cachers.most_requested import MostRequestedCacher, MostRequestedConfig
from lightning_t2drl.cachers.oracle import OracleCacher, OracleConfig
from lightning_t2drl.cachers.popular import PopularCacher, PopularConfig
from lightning_t2drl.cachers.random import RandomCacher, RandomConfig
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.loop.evaluation import evaluate
from lightning_t2drl.system import amend_cache, fill_in_order, load_scenario
from lightning_t2drl.system.caching import fits


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=12), st.floats(0.05, 60), st.integers(0, 1000))
def test_filling_is_maximal_and_everything_fits(sizes, capacity, seed):
    capacity = max(capacity, min(sizes))
    scenario = load_scenario("paper", model_storage_gb=sizes, storage_capacity_gb=capacity)
    generator = torch.Generator().manual_seed(seed)
    cache = fill_in_order(scenario, torch.rand(5, len(sizes), generator=generator))
    assert fits(scenario, cache).all()
    for row in cache:
        for m in (~row).nonzero().flatten():
            assert not fits(scenario, row | torch.nn.functional.one_hot(m, len(sizes)).bool())
    asked = torch.rand(5, len(sizes), generator=generator) < 0.7
    cut = amend_cache(scenario, asked)
    assert fits(scenario, cut).all() and not (cut & ~asked).any()
    assert torch.equal(amend_cache(scenario, cache), cache)


def test_random_is_seeded_and_varies():
    scenario = load_scenario("paper")
    cacher = RandomCacher(scenario, RandomConfig())
    cells = EdgeAIGCEnv(scenario, 30).observe()
    cacher.seed(1)
    first, second = cacher.decide(cells), cacher.decide(cells)
    cacher.seed(1)
    assert torch.equal(cacher.decide(cells), first) and not torch.equal(first, second)
    assert len(first.flatten(0, 1).unique(dim=0)) > 10


def test_popular_by_hand():
    scenario = load_scenario("paper")  # 4.3 6.9 2.1 5.2 of 20 GB leave 1.5: nothing else fits
    cache = PopularCacher(scenario, PopularConfig()).decide(EdgeAIGCEnv(scenario, 2).observe())
    assert cache[1, 0].nonzero().flatten().tolist() == [0, 1, 2, 3]


def watch(cacher, requests):
    """Decisions of a cacher that sees one world's requests slot by slot, after each."""
    scenario = cacher.scenario
    cells = EdgeAIGCEnv(scenario, 1).observe()
    cacher.start_episode(cells)
    out = []
    for request in requests:
        cells["request"] = torch.tensor(request).reshape(1, 1, -1)
        cacher.observe(cells)
        out.append(cacher.decide(cells)[0, 0].nonzero().flatten().tolist())
    return out


def test_online_cachers_by_hand():
    scenario = load_scenario("paper", users=2, model_storage_gb=[1.0, 1.0, 1.0, 1.0], storage_capacity_gb=2.0)
    requests = [[3, 3], [2, 1], [1, 0]]
    assert watch(LRUCacher(scenario, LRUConfig()), requests) == [[0, 3], [1, 2], [0, 1]]
    assert watch(MostRequestedCacher(scenario, MostRequestedConfig()), requests) == [[0, 3], [1, 3], [1, 3]]


def test_an_evaluation_in_between_leaves_memory_untouched():
    scenario = load_scenario("paper", frames_per_episode=2, slots_per_frame=2)
    for cacher in (LRUCacher(scenario, LRUConfig()), MostRequestedCacher(scenario, MostRequestedConfig())):
        assert cacher.extra_state()["priority"] is None
        cells = EdgeAIGCEnv(scenario, 3).observe()
        cacher.start_episode(cells)
        cacher.observe(cells)
        before = cacher.extra_state()["priority"].clone()
        evaluate(scenario, cacher, ExactAllocator(scenario, ExactConfig()), episodes=5, seed=0)
        assert torch.equal(cacher.extra_state()["priority"], before)


@pytest.mark.parametrize(("kind", "config"), [(LRUCacher, LRUConfig), (MostRequestedCacher, MostRequestedConfig)])
def test_memory_survives_a_file_before_and_within_an_episode(kind, config, tmp_path):
    scenario = load_scenario("paper", users=2, model_storage_gb=[1.0, 1.0, 1.0, 1.0], storage_capacity_gb=2.0)
    cacher, copy = kind(scenario, config()), kind(scenario, config())

    def transfer():
        torch.save(cacher.extra_state(), tmp_path / "state")
        copy.load_extra_state(torch.load(tmp_path / "state", weights_only=True))

    transfer()
    before = watch(cacher, [[3, 3], [2, 1]])
    assert watch(copy, [[3, 3], [2, 1]]) == before
    copy.start_episode(EdgeAIGCEnv(scenario, 7).observe())  # other worlds in between
    transfer()
    cells = EdgeAIGCEnv(scenario, 1).observe()
    for one in (cacher, copy):
        one.observe(cells)
    assert torch.equal(cacher.decide(cells), copy.decide(cells))
    assert copy.extra_state().keys() == cacher.extra_state().keys()
    assert torch.equal(cacher.priority, copy.priority)


@pytest.mark.parametrize(("kind", "config"), [(LRUCacher, LRUConfig), (MostRequestedCacher, MostRequestedConfig)])
def test_users_of_other_cells_are_not_counted(kind, config):
    scenario = load_scenario("paper", users=2)
    cacher, cells = kind(scenario, config()), EdgeAIGCEnv(scenario, 1).observe()
    cacher.start_episode(cells)
    cells["request"], cells["attached"] = torch.tensor([[[4, 7]]]), torch.tensor([[[False, True]]])
    cacher.observe(cells)
    assert cacher.priority.nonzero().tolist() == [[0, 0, 7]]


def test_oracle_follows_the_true_state_and_beats_popular():
    scenario = load_scenario("drift", frames_per_episode=3, slots_per_frame=3)
    oracle = OracleCacher(scenario, OracleConfig(slots=64))
    cells = EdgeAIGCEnv(scenario, 30).observe()
    assert torch.equal(oracle.decide(cells), oracle.caches.cache[cells["popularity_state"]])
    exact = ExactAllocator(scenario, ExactConfig(rounds=0))
    ours, static = (
        evaluate(scenario, cacher, exact, episodes=20, seed=1)["utility"].mean()
        for cacher in (oracle, PopularCacher(scenario, PopularConfig()))
    )
    assert ours > static + 0.02
