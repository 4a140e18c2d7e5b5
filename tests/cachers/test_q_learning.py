"""The DDQN against TorchRL's DQNLoss, a known optimum, and the knapsack against brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import OneHot
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss

from lightning_t2drl.cachers.knapsack import knapsack
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.registry import build
from lightning_t2drl.system import load_scenario
from lightning_t2drl.system.caching import all_caches, fits

DDQN = "lightning_t2drl.cachers.ddqn.DDQNCacher"
KNAPSACK = "lightning_t2drl.cachers.knapsack.KnapsackCacher"
TINY = {"model_storage_gb": [5.0, 4.0, 3.0, 2.0], "storage_capacity_gb": 7.0, "users": 3}


NETWORKS = {DDQN: "MLPQNetwork", KNAPSACK: "ModelValueNetwork"}


def make(target=DDQN, scenario=None, **config):
    torch.manual_seed(0)
    network = {"_target_": f"lightning_t2drl.networks.q.{NETWORKS[target]}"}
    content = {"_target_": target, "network": network, **config}
    return build(content, scenario or load_scenario("paper", **TINY), key="cacher")


def random_batch(cacher, size=32):
    generator = torch.Generator().manual_seed(1)
    caches = cacher.random_cache((size,))
    states = torch.eye(3)[torch.randint(3, (2, size), generator=generator)]
    reward = torch.randn(size, 1, generator=generator)
    fields = {"state": {"popularity": states[0]}, "next_state": {"popularity": states[1]}}
    return TensorDict(fields | {"cache": caches, "reward": reward}, batch_size=[size])


def test_loss_equals_torchrl_double_dqn():
    cacher = make(discount=0.7)
    with torch.no_grad():
        for p in cacher.target_network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    batch = random_batch(cacher)
    actions = len(cacher.subsets)
    actor = QValueActor(module=cacher.network, spec=OneHot(actions), in_keys=["state"], action_space="one_hot")
    loss = DQNLoss(actor, action_space="one_hot", loss_function="l2", delay_value=True, double_dqn=True)
    loss.make_value_estimator(loss.default_value_estimator, gamma=0.7)
    theirs = loss.target_value_network_params.flatten_keys(".")
    for name, value in cacher.target_network.named_parameters():
        theirs[
            next(key for key in ("module.0.module." + name, "module.0." + name) if key in set(theirs.keys()))
        ].data.copy_(value)
    chosen = cacher.network.place[(batch["cache"] * cacher.network.bits).sum(-1)]
    done = torch.zeros(32, 1, dtype=torch.bool)
    data = TensorDict(
        {
            "state": batch["state", "popularity"],
            "action": torch.nn.functional.one_hot(chosen, actions),
            "next": {
                "state": batch["next_state", "popularity"],
                "reward": batch["reward"],
                "done": done,
                "terminated": done,
            },
        },
        batch_size=[32],
    )
    ours = cacher.loss(batch["state", "popularity"], batch["cache"], cacher.target(batch))
    torch.testing.assert_close(ours, loss(data)["loss"], rtol=1e-5, atol=1e-7)


def train_on(cacher, reward_of, updates=800):
    """Fit a cacher on random caches whose reward is a known function of state and cache."""
    optimizers = cacher.optimizers_by_name()

    def optimise(name, loss):
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()

    for _ in range(updates):
        batch = random_batch(cacher, 64)
        batch["reward"] = reward_of(batch["state", "popularity"], batch["cache"]).unsqueeze(-1)
        batch["reward"] += 0.05 * torch.randn(batch["reward"].shape)
        cacher.update(batch, optimise)


@pytest.mark.parametrize(
    ("target", "network"),
    [(DDQN, "MLPQNetwork"), (DDQN, "CacheQNetwork"), (KNAPSACK, "ModelValueNetwork")],
)
def test_finds_the_known_best_cache_of_every_state(target, network):
    scenario = load_scenario("paper", **TINY)
    config = {"network": {"_target_": f"lightning_t2drl.networks.q.{network}"}, "discount": 0.3, "target_every": 50}
    cacher = make(target, scenario, **config)
    worth = torch.tensor([[0.9, 0.5, 0.3, 0.1], [0.1, 0.2, 0.6, 0.3], [0.0, 0.8, 0.7, 0.2]])
    train_on(cacher, lambda state, cache: ((state @ worth) * cache).sum(-1))
    subsets, feasible = all_caches(scenario)
    subsets = subsets[feasible]
    best = subsets[(worth @ subsets.T.float()).argmax(-1)]
    decided = cacher.best(cacher.network, torch.eye(3))
    assert torch.equal(decided, best)


CHARGED = {**TINY, "switch_cost_per_gb": 0.05}


def exact_values(scenario, worth, discount):
    """Caches [A, M] and Q by state, cache held and cache [3, A, A], by value iteration; any state follows any other."""
    subsets, feasible = all_caches(scenario)
    caches = subsets[feasible]
    sizes = scenario.model_storage.float()
    loads = scenario.switch_cost * ((caches & ~caches.unsqueeze(1)) * sizes).sum(-1)  # from row to column
    reward, value = worth @ caches.T.float(), torch.zeros(3, len(caches))
    for _ in range(400):
        after = reward + discount * value.mean(0)
        value = (after.unsqueeze(1) - loads).max(-1).values
    return caches, after.unsqueeze(1) - loads


@pytest.mark.parametrize(
    ("target", "network", "discount"),
    [(DDQN, "MLPQNetwork", 0.5), (DDQN, "CacheQNetwork", 0.5), (KNAPSACK, "ModelValueNetwork", 0.0)],
)  # what a cache brings later is no sum over its models
def test_a_known_charge_for_loading_is_weighed_against_what_loading_brings(target, network, discount):
    scenario = load_scenario("paper", **CHARGED)
    worth = torch.tensor([[0.9, 0.5, 0.3, 0.1], [0.1, 0.2, 0.6, 0.3], [0.0, 0.8, 0.7, 0.2]])
    cacher = make(target, scenario, network={"_target_": f"lightning_t2drl.networks.q.{network}"},
                  discount=discount, target_every=25)  # fmt: skip
    generator, optimizers = torch.Generator().manual_seed(2), cacher.optimizers_by_name()

    def optimise(name, loss):
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()

    for _ in range(1000):
        batch = random_batch(cacher, 512)
        states = torch.eye(3)[torch.randint(3, (2, 512), generator=generator)]
        held = cacher.random_cache((512,))
        before = TensorDict({"popularity": states[0], "cache": held}, batch_size=[512])
        after = TensorDict({"popularity": states[1], "cache": batch["cache"]}, batch_size=[512])
        earned = ((states[0] @ worth) * batch["cache"]).sum(-1) - cacher.charge(held, batch["cache"])
        cacher.update(cacher.transition(before, batch["cache"], earned.unsqueeze(-1), after), optimise)
    caches, exact = exact_values(scenario, worth, discount)
    seen = {"popularity": torch.eye(3).unsqueeze(1).expand(-1, len(caches), -1), "cache": caches.expand(3, -1, -1)}

    def lost(decided):
        return exact.max(-1).values - (exact * (decided.unsqueeze(-2) == caches).all(-1)).sum(-1)

    careless = cacher.best(cacher.network, torch.eye(3)).unsqueeze(1).expand(-1, len(caches), -1)
    loss = lost(cacher.choose(seen))
    assert loss.max() < 0.02
    assert loss.mean() < lost(careless).mean() / 2, "the charge matters"


def test_the_charge_of_a_cache_is_that_of_what_is_newly_loaded():
    cacher = make(scenario=load_scenario("paper", **CHARGED))
    held = torch.tensor([[True, False, False, True], [False] * 4])
    cache = torch.tensor([[False, True, True, False], [True, False, False, True]])
    assert cacher.charge(held, cache).tolist() == pytest.approx([0.05 * (4 + 3), 0.05 * (5 + 2)])
    assert cacher.charge(cache, cache).tolist() == [0, 0]


def test_a_checkpoint_from_when_the_charge_was_learned_goes_on_learning_it():
    cacher = make(scenario=load_scenario("paper", **CHARGED))
    assert cacher.needed == ("popularity", "cache")
    state = cacher.extra_state()
    del state["charge_apart"]
    for load in (cacher.load_extra_state, cacher.parameters_loaded):
        cacher.charge_apart = True
        load(state)
        assert cacher.needed == ("popularity",)
    assert make(scenario=load_scenario("paper", **CHARGED), observe_cache=True).held({"cache": None}) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 10_000))
def test_knapsack_is_optimal(models, capacity, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, models, generator=generator)
    sizes = torch.randint(1, 8, (models,), generator=generator)
    chosen = knapsack(values, sizes.tolist(), capacity)
    assert ((chosen * sizes).sum(-1) <= capacity).all()
    subsets = torch.tensor(list(itertools.product([0, 1], repeat=models)))
    ok = subsets[(subsets * sizes).sum(-1) <= capacity].float()
    torch.testing.assert_close((values * chosen).sum(-1), (values @ ok.T).max(-1).values)


def test_knapsack_cacher_serves_catalogues_that_the_ddqn_refuses():
    sizes = [1.0 + 0.1 * m for m in range(50)]
    scenario = load_scenario("paper", model_storage_gb=sizes, storage_capacity_gb=30.0)
    with pytest.raises(UserError, match="knapsack"):
        make(DDQN, scenario)
    cacher = make(KNAPSACK, scenario)
    cells = EdgeAIGCEnv(scenario, 4).observe()
    for explore in (False, True):
        assert fits(scenario, cacher.decide(cells, explore=explore)).all()


def test_a_network_must_value_what_the_cacher_compares():
    with pytest.raises(UserError, match="CacheQNetwork does not fit KnapsackCacher"):
        make(KNAPSACK, network={"_target_": "lightning_t2drl.networks.q.CacheQNetwork"})
    with pytest.raises(UserError, match="ModelValueNetwork does not fit DDQNCacher"):
        make(DDQN, network={"_target_": "lightning_t2drl.networks.q.ModelValueNetwork"})


def test_epsilon_falls_linearly_and_exploration_stays_feasible():
    cacher = make(epsilon=1.0, epsilon_end=0.1, epsilon_fraction=0.5)
    for progress, expected in ((0.0, 1.0), (0.25, 0.55), (0.5, 0.1), (1.0, 0.1)):
        cacher.progress = progress
        assert cacher.epsilon == pytest.approx(expected)
    cells = EdgeAIGCEnv(cacher.scenario, 200).observe()
    cacher.progress = 0.0
    decided = cacher.decide(cells, explore=True)
    assert fits(cacher.scenario, decided).all()
    assert len(decided.flatten(0, 1).unique(dim=0)) == len(cacher.subsets)


@pytest.mark.parametrize("kind", [DDQN, KNAPSACK])
def test_exploration_near_the_best_changes_less_and_takes_in_another_model(kind):
    cells = EdgeAIGCEnv(load_scenario("paper", **TINY), 300).observe()
    cacher = make(kind, epsilon=1.0, epsilon_near=1.0)
    greedy, near = cacher.decide(cells), cacher.decide(cells, explore=True)
    anywhere = make(kind, epsilon=1.0, epsilon_near=0.0).decide(cells, explore=True)
    assert fits(cacher.scenario, near).all() and (near & ~greedy).any(-1).float().mean() > 0.3
    assert (near ^ greedy).sum() < (anywhere ^ greedy).sum()


def test_penalty_variant_offers_everything_and_charges_for_what_does_not_fit():
    cacher = make(infeasible_penalty=0.7)
    assert len(cacher.subsets) == 2**4
    asked = torch.tensor([[True, True, False, False], [True, False, False, True]])
    reward = cacher.reward(torch.ones(2, 1), asked)
    assert reward.flatten().tolist() == pytest.approx([0.3, 1.0])


@pytest.mark.parametrize("target", [DDQN, KNAPSACK])
def test_cells_that_cooperate_decide_in_turn_and_learn_from_what_all_earn(target, monkeypatch):
    """Three cells hold one model each; the first that nobody else holds is what each asks for."""
    scenario = load_scenario("paper", cells=3, users=6, model_storage_gb=[4.0] * 4, storage_capacity_gb=4.0, edge_link_mbps=200.0)  # fmt: skip
    cacher = make(target, scenario, cooperate=True)
    seen = []

    def first_free(observation, explore):
        seen.append(observation["nearby"])
        return torch.nn.functional.one_hot((~observation["nearby"]).int().argmax(-1), 4).bool()

    monkeypatch.setattr(cacher, "decide_alone", first_free)
    env = EdgeAIGCEnv(scenario, 2, 0)
    held = torch.zeros(2, 3, 4, dtype=torch.bool)
    held[1, 2, 0] = held[1, 1, 1] = True  # in the second world the last cells hold the first two models
    cells = env.latch(held)
    state, cache = cacher.state(cells), cacher.decide(cells)
    assert cache.int().argmax(-1).tolist() == [[0, 1, 2], [2, 1, 0]]
    assert cacher.decide(cells[:, :1]).shape == (2, 1, 4)  # one cell asks alone: what is nearby is what it says
    reward = torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, 3.0]]).unsqueeze(-1)
    stored = cacher.transition(state, cache, reward, cacher.state(env.observe()))
    assert torch.equal(stored["state", "nearby"], torch.stack(seen[:3], 1))
    assert set(stored["state"].keys()) == set(stored["next_state"].keys()) == {"popularity", "nearby"}
    # others earned 6, 5, 3 and 6, 3, 3: less their means over worlds 0, 1, 0 and 0, -1, 0
    assert stored["reward"].squeeze(-1).tolist() == [[1.0, 3.0, 4.0], [0.0, 2.0, 3.0]]
    alone = cacher.transition(state[:1], cache[:1], reward[:1], state[:1])
    assert alone["reward"].flatten().tolist() == [7.0, 7.0, 7.0]
