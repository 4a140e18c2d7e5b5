"""Equal split, the near-exact allocator and the genetic algorithm."""

import torch

from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.allocators.exact import ExactAllocator, ExactConfig
from lightning_t2drl.allocators.genetic import GeneticAllocator, GeneticConfig
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.system import amend_allocation, load_scenario
from lightning_t2drl.system.bounds import slot_bound
from lightning_t2drl.system.serving import hits


def cells_of(scenario, n=4):
    cells = EdgeAIGCEnv(scenario, n, seed=2).observe()
    cache = cells["cache"].clone()
    cache[..., [0, 1, 2, 4, 6]] = True
    return cells.set("cache", cache)


def utility(scenario, cells, allocator):
    env = EdgeAIGCEnv(scenario, len(cells), seed=2)
    env.latch(cells["cache"])
    return env.play(allocator.decide(cells))["reward", "slot"].squeeze(-1)


def test_equal_split_in_closed_form():
    scenario = load_scenario("paper")
    cells = cells_of(scenario)
    hit = hits(cells["cache"], cells["request"])
    shares = amend_allocation(EqualAllocator(scenario, EqualConfig()).decide(cells), hit, cells["attached"])
    torch.testing.assert_close(shares[..., 0], torch.full(hit.shape, 0.1))
    torch.testing.assert_close(shares[..., 1], 0.1 * hit)


def test_equal_split_counts_attached_users_only():
    scenario = load_scenario("paper", users=4)
    cells = cells_of(scenario, 1)
    cells["request"] = torch.tensor([[[0, 5, 1, 0]]])  # hit, miss, hit, hit
    cells["attached"] = torch.tensor([[[True, True, False, False]]])
    hit = hits(cells["cache"], cells["request"])
    shares = amend_allocation(EqualAllocator(scenario, EqualConfig()).decide(cells), hit, cells["attached"])
    torch.testing.assert_close(shares[0, 0], torch.tensor([[0.5, 0.5], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_exact_achieves_through_the_environment_what_its_bound_promises():
    scenario = load_scenario("paper")
    cells = cells_of(scenario, 16)
    exact = utility(scenario, cells, ExactAllocator(scenario, ExactConfig()))
    keys = ("request", "input_bits", "output_bits", "gain", "cache", "attached")
    found = slot_bound(scenario, *(cells[key] for key in keys))
    torch.testing.assert_close(exact, found["achieved"], rtol=1e-4, atol=1e-5)
    assert (exact <= found["bound"] + 1e-5).all()
    equal = utility(scenario, cells, EqualAllocator(scenario, EqualConfig()))
    assert (exact > equal).all()


def test_genetic_is_seeded_and_between_equal_split_and_bound():
    scenario = load_scenario("paper")
    cells = cells_of(scenario, 2)
    allocator = GeneticAllocator(scenario, GeneticConfig(population=30, generations=25))
    allocator.seed(1)
    first = allocator.decide(cells)
    allocator.seed(1)
    assert torch.equal(first, allocator.decide(cells))
    assert not torch.equal(first, allocator.decide(cells))
    assert (first.abs() <= 1).all()
    hit = hits(cells["cache"], cells["request"])
    shares = amend_allocation(first, hit, cells["attached"])
    assert (shares >= 0).all() and (shares.sum(-2) <= 1 + 1e-6).all() and (shares[..., 1][~hit] == 0).all()
    genetic = utility(scenario, cells, allocator)
    keys = ("request", "input_bits", "output_bits", "gain", "cache", "attached")
    assert (genetic <= slot_bound(scenario, *(cells[key] for key in keys))["bound"] + 1e-5).all()
    assert (genetic > utility(scenario, cells, EqualAllocator(scenario, EqualConfig()))).all()
