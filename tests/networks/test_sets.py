"""Set networks treat users as a set, whatever their number."""

import pytest
import torch

from lightning_t2drl.networks.features import UserFeatures
from lightning_t2drl.networks.sets import SetConfig, SetCritic, SetTrunk
from lightning_t2drl.system import load_scenario


def permute_users(state, order):
    return {name: value[:, order] for name, value in state.items()}


def random_state(users, batch=4):
    hit, attached = torch.rand(2, batch, users) < 0.5
    attached[:, 0] = True
    features = torch.randn(batch, users, UserFeatures.PER_USER)
    full_share = torch.full((batch, users), 0.17)
    return {"hit": hit & attached, "attached": attached, "full_share": full_share, "features": features}


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


def test_users_of_other_cells_change_nothing():
    scenario = load_scenario("paper")
    critic = SetCritic(scenario, SetConfig())
    state, shares = random_state(5), torch.rand(4, 5, 2)
    state["attached"][:] = torch.tensor([True, True, True, True, False])
    other = state | {"features": state["features"].clone()}
    other["features"][:, 4] = 9.0
    torch.testing.assert_close(critic(other, shares)[:, :4], critic(state, shares)[:, :4])
