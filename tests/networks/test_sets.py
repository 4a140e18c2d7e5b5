"""Set networks treat users as a set, whatever their number."""

import pytest
import torch

from lightning_t2drl.networks.features import UserFeatures
from lightning_t2drl.networks.sets import SetConfig, SetCritic, SetTrunk
from lightning_t2drl.system import load_scenario


def permute_users(state, order):
    users = len(order)
    columns = state[..., : 3 * users].unflatten(-1, (3, users))[..., order].flatten(-2)
    table = state[..., 3 * users :].unflatten(-1, (users, UserFeatures.PER_USER))[..., order, :].flatten(-2)
    return torch.cat((columns, table), -1)


def random_state(users, batch=4):
    hit, attached = torch.rand(2, batch, users).round()
    attached[:, 0] = 1
    table = torch.randn(batch, users * UserFeatures.PER_USER)
    return torch.cat((hit * attached, attached, torch.full((batch, users), 0.17), table), -1)


@pytest.mark.parametrize("users", [1, 3, 10])
def test_equivariance_and_any_number_of_users(users):
    scenario = load_scenario("paper")
    trunk, critic = SetTrunk(scenario, 3, SetConfig()), SetCritic(scenario, SetConfig())
    state, x, shares = random_state(users), torch.randn(4, users, 2), torch.rand(4, users, 2)
    order = torch.randperm(users)
    moved = permute_users(state, order)
    out = trunk(trunk.context(state), x, 1)
    torch.testing.assert_close(trunk(trunk.context(moved), x[:, order], 1), out[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(critic(moved, shares[:, order]), critic(state, shares)[:, order], rtol=1e-4, atol=1e-5)


def test_users_of_other_cells_are_not_heard():
    scenario = load_scenario("paper")
    critic = SetCritic(scenario, SetConfig())
    state, shares = random_state(5), torch.rand(4, 5, 2)
    state[:, 5:10] = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    other = state.clone()
    other[:, 15 + 4 * UserFeatures.PER_USER :] = 9.0
    torch.testing.assert_close(critic(other, shares)[:, :4], critic(state, shares)[:, :4])
