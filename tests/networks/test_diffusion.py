"""The reverse chain against closed forms and against diffusers' DDPM scheduler."""

import pytest
import torch
from diffusers import DDPMScheduler

from lightning_t2drl.networks.activations import ACTIVATIONS
from lightning_t2drl.networks.actors.diffusion import (
    SCHEDULES,
    DiffusionActor,
    linear_betas,
    posterior_coefficients,
    reverse_chain,
    vp_betas,
)
from lightning_t2drl.networks.mlp import MLPConfig, MLPTrunk
from lightning_t2drl.system import load_scenario


@pytest.mark.parametrize("schedule", ["vp", "linear"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_reverse_step_is_the_ddpm_posterior(schedule, prediction, steps):
    betas = SCHEDULES[schedule](steps, 0.1, 0.9 if schedule == "linear" else 10.0)
    oracle = DDPMScheduler(
        num_train_timesteps=steps,
        trained_betas=betas.numpy(),
        prediction_type=prediction,
        clip_sample=False,
        variance_type="fixed_small",
    )
    x, output = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    for i, (on_x, on_prediction, on_noise) in enumerate(posterior_coefficients(betas, prediction)):
        theirs = oracle.step(output, i, x, generator=torch.Generator().manual_seed(1)).prev_sample
        z = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(1)) if i else 0.0  # no noise in the last step
        torch.testing.assert_close(on_x * x + on_prediction * output + on_noise * z, theirs, rtol=1e-4, atol=1e-5)


def test_schedules_in_closed_form():
    assert linear_betas(3, 0.1, 0.3).tolist() == pytest.approx([0.1, 0.2, 0.3])
    # The discretisation keeps the continuous process' total: prod(1 - beta) = exp(-(min + max) / 2).
    assert float((1 - vp_betas(7, 0.1, 10.0)).prod()) == pytest.approx(float(torch.tensor(-5.05).exp()))


class ConstantTrunk(torch.nn.Module):
    """Predicts the same x_0 whatever it sees."""

    def context(self, state):
        return state

    def forward(self, context, x, step):
        return torch.full_like(x, 0.25)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_chain_that_predicts_one_sample_ends_in_it(steps):
    actor = DiffusionActor(ConstantTrunk(), steps, "vp", 0.1, 10.0, "sample")
    out = actor(torch.zeros(4, 7), torch.randn(steps, 4, 3, 2))
    torch.testing.assert_close(out, torch.full_like(out, 0.25))


def test_noise_enters_each_step_once_and_the_last_step_adds_none():
    actor = DiffusionActor(ConstantTrunk(), 3, "linear", 0.1, 0.5, "epsilon")
    noise = torch.randn(3, 2, 3, 2)
    (c1, p1, _), (c2, p2, z2), (c3, p3, z3) = posterior_coefficients(linear_betas(3, 0.1, 0.5), "epsilon")
    x2 = c3 * noise[0] + p3 * 0.25 + z3 * noise[1]
    x1 = c2 * x2 + p2 * 0.25 + z2 * noise[2]
    torch.testing.assert_close(actor(torch.zeros(2, 1), noise), c1 * x1 + p1 * 0.25)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_mlps_own_gradient_is_that_of_autograd(activation, layers):
    torch.manual_seed(0)
    trunk = MLPTrunk(load_scenario("paper", users=3), 4, MLPConfig("", 8, layers, activation)).double()
    state = torch.randn(5, 9 + trunk.from_state.in_features, dtype=torch.float64, requires_grad=True)
    x, *added = torch.randn(4, 5, 3, 2, dtype=torch.float64)
    coefficients = [
        (on_x, on_output) for on_x, on_output, _ in posterior_coefficients(linear_betas(4, 0.1, 0.3), "epsilon")
    ]
    context = trunk.context(state)
    plain = reverse_chain(lambda x, step: trunk(context, x, step), x, added, coefficients)
    whole = trunk.chain(state, x, added, coefficients)
    torch.testing.assert_close(whole, plain)
    inputs = [state, *trunk.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(out.sin().sum(), inputs) for out in (whole, plain)), strict=True):
        torch.testing.assert_close(ours, theirs)
