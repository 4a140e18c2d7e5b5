"""The reverse chain against closed forms and against diffusers' DDPM scheduler."""

import pytest
import torch
from diffusers import DDPMScheduler

from lightning_t2drl.networks.actors.diffusion import (
    SCHEDULES,
    DiffusionConfig,
    EpsilonDiffusion,
    EpsilonDiffusionConfig,
    SampleDiffusion,
    linear_betas,
    vp_betas,
)

KINDS = {"epsilon": (EpsilonDiffusion, EpsilonDiffusionConfig), "sample": (SampleDiffusion, DiffusionConfig)}


class ConstantTrunk(torch.nn.Module):
    """Gives out the same whatever it sees."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def context(self, state):
        return None

    def forward(self, context, x, step):
        return torch.full_like(x, self.output)


def chain(prediction, output=0.25, **config):
    kind, schema = KINDS[prediction]
    return kind(lambda steps: ConstantTrunk(output), schema(**config))


def state_of(*batch):
    return {"hit": torch.ones(*batch, 3, dtype=torch.bool), "features": torch.zeros(*batch, 7)}


@pytest.mark.parametrize("schedule", ["vp", "linear"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_reverse_step_is_the_ddpm_posterior(schedule, prediction, steps):
    most = 0.9 if schedule == "linear" else 10.0
    actor = chain(prediction, steps=steps, schedule=schedule, beta_min=0.1, beta_max=most)
    betas = SCHEDULES[schedule](steps, 0.1, most)
    oracle = DDPMScheduler(
        num_train_timesteps=steps,
        trained_betas=betas.numpy(),
        prediction_type=prediction,
        clip_sample=False,
        variance_type="fixed_small",
    )
    x, output = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    on_noise = [0.0, *actor.spread.flatten().flip(0).tolist()]
    for i in range(steps):
        theirs = oracle.step(output, i, x, generator=torch.Generator().manual_seed(1)).prev_sample
        z = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(1)) if i else 0.0  # no noise in the last step
        torch.testing.assert_close(
            actor.on_x[i] * x + actor.on_prediction[i] * output + on_noise[i] * z, theirs, rtol=1e-4, atol=1e-5
        )


def test_schedules_in_closed_form():
    assert linear_betas(3, 0.1, 0.3).tolist() == pytest.approx([0.1, 0.2, 0.3])
    # The discretisation keeps the continuous process' total: prod(1 - beta) = exp(-(min + max) / 2).
    assert float((1 - vp_betas(7, 0.1, 10.0)).prod()) == pytest.approx(float(torch.tensor(-5.05).exp()))


@pytest.mark.parametrize("steps", [1, 5])
def test_a_chain_that_predicts_one_sample_ends_in_it(steps):
    actor = chain("sample", steps=steps)
    out = actor(state_of(4, 2), torch.randn(steps, 4, 2, 3, 2))
    torch.testing.assert_close(out, torch.full_like(out, 0.25).tanh())


def test_noise_enters_each_step_once_and_the_last_step_adds_none():
    actor = chain("epsilon", steps=3, schedule="linear", beta_min=0.1, beta_max=0.5, epsilon_bound=2.0)
    noise = torch.randn(3, 2, 3, 2)
    (c1, c2, c3), (p1, p2, p3), (z3, z2) = actor.on_x, actor.on_prediction, actor.spread.flatten().tolist()
    epsilon = 2 * torch.tensor(0.25).tanh()
    x2 = c3 * noise[0] + p3 * epsilon + z3 * noise[1]
    x1 = c2 * x2 + p2 * epsilon + z2 * noise[2]
    torch.testing.assert_close(actor(state_of(2), noise), c1 * x1 + p1 * epsilon)


def test_with_a_bound_of_three_a_chain_can_take_out_its_own_noise_and_with_one_it_cannot():
    """The best controller of each step, given x_i: what is left of the spread of x_0 through tanh (deviation 4)."""
    left = {}
    for bound in (1.0, 3.0):
        actor = chain("epsilon", steps=5, schedule="linear", beta_min=0.05, beta_max=0.3, epsilon_bound=bound)
        x, *added = torch.randn(5, 20_000, generator=torch.Generator().manual_seed(0)).unbind()
        for i in range(5, 0, -1):
            on_x, on_prediction = actor.on_x[i - 1], actor.on_prediction[i - 1]
            epsilon = (-on_x * x / on_prediction).clamp(-bound, bound)  # drives the mean of x_{i-1} to 0
            x = on_x * x + on_prediction * epsilon
            if i > 1:
                x = x + actor.spread.flatten()[5 - i] * added[5 - i]
        left[bound] = x.tanh().std().item()
    assert left[1.0] > 0.3 and left[3.0] < 0.1
