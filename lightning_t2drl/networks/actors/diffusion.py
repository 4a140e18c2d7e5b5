"""The reverse diffusion chain that is D3PG's actor (docs/concepts/learning.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from lightning_t2drl.checks import Misfit, one_of, within
from lightning_t2drl.networks.actors.base import Actor, MakeTrunk, flat
from lightning_t2drl.networks.features import State


def vp_betas(steps: int, beta_min: float, beta_max: float) -> Tensor:
    """Variance-preserving schedule: beta_i = 1 - exp(-beta_min/I - (2i-1)/(2 I^2) (beta_max - beta_min)); [I]."""
    i = torch.arange(1, steps + 1, dtype=torch.float64)
    return 1 - torch.exp(-beta_min / steps - (2 * i - 1) / (2 * steps**2) * (beta_max - beta_min))


def linear_betas(steps: int, beta_min: float, beta_max: float) -> Tensor:
    """beta_i rising linearly from `beta_min` to `beta_max`; [I]."""
    return torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)


SCHEDULES = {"vp": vp_betas, "linear": linear_betas}
SAMPLERS = ("ddpm", "ddim")


@dataclass
class DiffusionConfig:
    """Keys that both kinds of chain read, `configs/allocator/diffusion/*.yaml`."""

    _target_: str = ""
    steps: int = 5
    schedule: str = "vp"
    beta_min: float = 0.1
    beta_max: float = 10.0
    sampler: str = "ddpm"

    def __post_init__(self) -> None:
        within("", self, steps=(1, 1000))
        one_of("", self, schedule=SCHEDULES, sampler=SAMPLERS)
        top = 1.0 if self.schedule == "linear" else 1e3
        if not 0 < self.beta_min <= self.beta_max < top:
            raise Misfit(f"beta_min, beta_max: need 0 < beta_min <= beta_max < {top:g} for {self.schedule}")


@dataclass
class EpsilonDiffusionConfig(DiffusionConfig):
    """Keys of `configs/allocator/diffusion/epsilon.yaml`."""

    epsilon_bound: float = 3.0
    saturation_penalty: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("", self, epsilon_bound=(1e-3, 1e3), saturation_penalty=(0, 1e6))


class DiffusionActor(Actor):
    """x_I ~ N(0, I), denoised in I steps to an action, trained end to end by the critic's gradient.

    x_{i-1} = c_x x_i + c_p prediction + c_z z, with phi_i = 1 - beta_i, phibar_i their running product and
    betabar_i = (1-phibar_{i-1})/(1-phibar_i) beta_i the variance of z's coefficient, 0 at i = 1. Subclasses say what
    the network predicts, and so what c_x and c_p are. With `sampler=ddim` no noise is added: x_{i-1} lies where the
    forward process would have been with the predicted x_0 and noise, so the action depends on x_I alone.

    Args:
        make_trunk: the network for a chain of so many steps, see `Trunk`.
        config: of the chain.
    """

    spread: Tensor

    def __init__(self, make_trunk: MakeTrunk, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.steps = self.levels = config.steps
        self.draws = config.steps if config.sampler == "ddpm" else 1
        self.trunk = make_trunk(config.steps)
        betas = SCHEDULES[config.schedule](config.steps, config.beta_min, config.beta_max)
        phi = 1 - betas
        phibar = phi.cumprod(0)
        before = torch.cat((torch.ones(1, dtype=torch.float64), phibar[:-1]))
        coefficients = self.coefficients if config.sampler == "ddpm" else self.deterministic
        on_x, on_prediction = coefficients(phi, phibar, before)
        self.on_x, self.on_prediction = on_x.tolist(), on_prediction.tolist()
        spread = ((1 - before) / (1 - phibar) * betas).sqrt()[1:].flip(0).float()  # of the steps I..2
        self.register_buffer("spread", spread.view(-1, 1, 1, 1), persistent=False)
        self.noised = torch.stack((phibar.sqrt(), (1 - phibar).sqrt()), -1).tolist()  # of x_0 and of noise in x_i

    @staticmethod
    def coefficients(phi: Tensor, phibar: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """c_x and c_p of the steps 1..I, from phi_i, phibar_i and phibar_{i-1}."""
        raise NotImplementedError

    @staticmethod
    def deterministic(phi: Tensor, phibar: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The same without noise (DDIM)."""
        raise NotImplementedError

    def predict(self, output: Tensor) -> Tensor:
        """What the network's output [n, U, 2] predicts."""
        raise NotImplementedError

    def truth(self, clean: Tensor, noise: Tensor) -> Tensor:
        """What it should have predicted for x_i made of `clean` and `noise`."""
        raise NotImplementedError

    def forward(self, state: State, noise: Tensor) -> Tensor:
        """x_0 [*, U, 2] for states [*], not squashed.

        Args:
            state: see `networks.features`.
            noise: [I, *, U, 2], standard normal: x_I, then z for the steps I..2 (the last step adds none); with DDIM
                only x_I.
        """
        rows, batch = flat(state)
        noise = noise.reshape(self.draws, -1, *noise.shape[-2:])
        x, added = noise[0], (noise[1:] * self.spread[: self.draws - 1]).unbind()
        context = self.trunk.context(rows)  # type: ignore[operator]
        for i in range(self.steps, 0, -1):
            prediction = self.predict(self.trunk(context, x, i - 1))
            x = (self.on_x[i - 1] * x).add(prediction, alpha=self.on_prediction[i - 1])
            if self.steps - i < len(added):
                x = x + added[self.steps - i]
        return x.unflatten(0, batch)

    def denoising_loss(self, state: State, clean: Tensor, noise: Tensor) -> Tensor:
        """The squared error of the prediction, a mean over all diffusion steps, [*, U]; see `Actor`."""
        rows, batch = flat(state)
        clean, noise = clean.reshape(-1, *clean.shape[-2:]), noise.reshape(self.levels, -1, *noise.shape[-2:])
        context = self.trunk.context(rows)  # type: ignore[operator]
        errors = []
        for i, (on_clean, on_noise) in enumerate(self.noised):
            prediction = self.predict(self.trunk(context, on_clean * clean + on_noise * noise[i], i))
            errors.append((prediction - self.truth(clean, noise[i])).square().mean(-1))
        return torch.stack(errors).mean(0).unflatten(0, batch)


class SampleDiffusion(DiffusionActor):
    """The network predicts x_0 through tanh; a step goes to the mean of q(x_{i-1} | x_i, x_0)."""

    Config = DiffusionConfig

    @staticmethod
    def coefficients(phi: Tensor, phibar: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return phi.sqrt() * (1 - before) / (1 - phibar), before.sqrt() * (1 - phi) / (1 - phibar)

    @staticmethod
    def deterministic(phi: Tensor, phibar: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        on_x = ((1 - before) / (1 - phibar)).sqrt()
        return on_x, before.sqrt() - phibar.sqrt() * on_x

    def predict(self, output: Tensor) -> Tensor:
        return output.tanh()

    def truth(self, clean: Tensor, noise: Tensor) -> Tensor:
        return clean.clamp(-1.0, 1.0)


class EpsilonDiffusion(DiffusionActor):
    """The network predicts the noise, as published: x_{i-1} = (x_i - (1-phi_i)/sqrt(1-phibar_i) eps)/sqrt(phi_i) + ...

    eps is within `epsilon_bound` (published: 1). With a bound of 1 no network can take out of x_0 the noise that the
    chain adds; see docs/deviations.md. x_0 has no bound and is squashed by tanh, because a clamp to [-1, 1] has no
    gradient outside; and as shares do not change when all raw actions grow alike, nothing but `saturation_penalty`,
    on the square of what exceeds [-1, 1], keeps x_0 from drifting to where tanh has none either.
    """

    Config = EpsilonDiffusionConfig
    config: EpsilonDiffusionConfig

    @staticmethod
    def coefficients(phi: Tensor, phibar: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return phi.rsqrt(), -(1 - phi) / (1 - phibar).sqrt() * phi.rsqrt()

    @staticmethod
    def deterministic(phi: Tensor, phibar: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return phi.rsqrt(), (1 - before).sqrt() - (1 - phibar).sqrt() * phi.rsqrt()

    def predict(self, output: Tensor) -> Tensor:
        return self.config.epsilon_bound * output.tanh()

    def truth(self, clean: Tensor, noise: Tensor) -> Tensor:
        return noise

    def squash(self, x: Tensor) -> Tensor:
        return x.tanh()

    def penalty(self, x: Tensor) -> Tensor:
        # Inside [-1, 1] the term is 0.
        return self.config.saturation_penalty * mse_loss(x, x.detach().clamp(-1.0, 1.0))
