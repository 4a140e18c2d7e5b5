"""Every kind of actor in closed form, and against other people's code."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torchrl.modules import TanhNormal

from lightning_t2drl.networks.actors.consistency import ConsistencyActor, ConsistencyConfig
from lightning_t2drl.networks.actors.diffusion import (
    DiffusionConfig,
    EpsilonDiffusion,
    EpsilonDiffusionConfig,
    SampleDiffusion,
    linear_betas,
)
from lightning_t2drl.networks.actors.flow import FlowActor, FlowConfig
from lightning_t2drl.networks.actors.gaussian import GaussianActor

STATE = {"hit": torch.ones(4, 3, dtype=torch.bool), "attached": torch.ones(4, 3, dtype=torch.bool)}


class Trunk(torch.nn.Module):
    """A network given as a function of x and the step."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def context(self, state):
        return None

    def forward(self, context, x, step):
        return self.function(x, step)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(kind, config, function):
    return kind(lambda steps: Trunk(function), config)


DIFFUSIONS = {
    "sample": (SampleDiffusion, DiffusionConfig),
    "epsilon": (EpsilonDiffusion, EpsilonDiffusionConfig),
}


@pytest.mark.parametrize("prediction", DIFFUSIONS)
def test_ddim_steps_are_those_of_diffusers(prediction):
    kind, schema = DIFFUSIONS[prediction]
    keys = {"steps": 5, "schedule": "linear", "beta_min": 0.1, "beta_max": 0.5}
    actor = made(kind, schema(**keys, sampler="ddim"), lambda x, step: x)
    oracle = DDIMScheduler(
        num_train_timesteps=5,
        trained_betas=linear_betas(5, 0.1, 0.5).numpy(),
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=True,
    )
    oracle.set_timesteps(5)
    x, output = normal(2, 6, 3, 2)
    for i in range(5):
        theirs = oracle.step(output, i, x).prev_sample
        torch.testing.assert_close(actor.on_x[i] * x + actor.on_prediction[i] * output, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", DIFFUSIONS)
def test_ddim_is_ddpm_where_the_last_step_is_all_there_is(prediction):
    """The last step adds no noise in either; with more, DDIM takes one draw and DDPM as many as it has steps."""
    kind, schema = DIFFUSIONS[prediction]
    one = [made(kind, schema(steps=1, sampler=s), lambda x, step: 0.3 * x) for s in ("ddpm", "ddim")]
    torch.testing.assert_close(*(actor(STATE, normal(1, 4, 3, 2)) for actor in one))
    more = [made(kind, schema(steps=4, sampler=s), lambda x, step: 0.3 * x) for s in ("ddpm", "ddim")]
    assert [actor.draws for actor in more] == [4, 1]
    first, second = (actor.on_prediction for actor in more)
    assert first[0] == pytest.approx(second[0], abs=1e-9) and first[1:] != second[1:]


def test_a_flow_with_a_known_field_goes_straight_there():
    end = 0.4
    actor = made(FlowActor, FlowConfig(steps=4), lambda x, step: torch.full_like(x, math.atanh(end)))
    z = normal(4, 3, 2)
    for step in range(4):  # the true field on the straight path is the same at every time
        at = torch.lerp(z, torch.full_like(z, end), step / 4)
        torch.testing.assert_close(actor.velocity(torch.full_like(z, math.atanh(end)), at, step), end - z)
    torch.testing.assert_close(actor(STATE, z[None]), torch.full_like(z, end))
    loss = actor.denoising_loss(STATE, torch.full_like(z, end), normal(4, 4, 3, 2, seed=1))
    torch.testing.assert_close(loss, torch.zeros(4, 3), atol=1e-9, rtol=0)


def test_a_consistency_function_keeps_the_lowest_level_and_ends_in_bounds_from_the_highest():
    actor = made(ConsistencyActor, ConsistencyConfig(steps=2, levels=5), lambda x, step: torch.full_like(x, 0.3))
    assert actor.visited == [4, 2]
    x = normal(4, 3, 2)
    torch.testing.assert_close(actor.consistent(None, x, 0), x)
    highest = made(ConsistencyActor, ConsistencyConfig(), lambda x, step: torch.full_like(x, 0.3))
    assert (highest(STATE, normal(1, 4, 3, 2)) - math.tanh(0.3)).abs().max() < 0.1


def test_denoising_losses_vanish_for_the_right_prediction_only():
    clean, noise = normal(4, 3, 2).clamp(-0.9, 0.9), normal(5, 4, 3, 2, seed=1).clamp(-2.9, 2.9)
    right = made(SampleDiffusion, DiffusionConfig(), lambda x, step: clean.atanh())
    torch.testing.assert_close(right.denoising_loss(STATE, clean, noise), torch.zeros(4, 3))
    wrong = made(SampleDiffusion, DiffusionConfig(), lambda x, step: torch.zeros_like(x))
    torch.testing.assert_close(wrong.denoising_loss(STATE, clean, noise), clean.square().mean(-1))
    epsilon = made(EpsilonDiffusion, EpsilonDiffusionConfig(), lambda x, step: (noise[step] / 3).atanh())
    torch.testing.assert_close(epsilon.denoising_loss(STATE, clean, noise), torch.zeros(4, 3), atol=1e-3, rtol=0)


def test_log_density_is_torchrls():
    actor = GaussianActor(lambda steps: Trunk(lambda x, step: x + 0.2 if step == 0 else 0.5 * x))
    noise = normal(1, 4, 3, 2)
    x, log_density = actor.sample(STATE, noise)
    mean, log_deviation = actor.moments(STATE)
    oracle = TanhNormal(mean, log_deviation.exp(), event_dims=0)
    torch.testing.assert_close(log_density, oracle.log_prob(actor.squash(x)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actor(STATE, torch.zeros_like(noise)), mean)
