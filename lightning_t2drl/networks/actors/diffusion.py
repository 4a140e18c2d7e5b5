"""The reverse diffusion chain that is D3PG's actor (system model, section 10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Trunk(Protocol):
    """What a denoiser or plain actor network offers: the swap-in point for an architecture of one's own.

    It may also have a `chain(state, x, added, coefficients)`, a `reverse_chain` that is faster to differentiate.
    """

    def context(self, state: Tensor) -> Any:
        """What the states [n, S] contribute, evaluated once per chain."""

    def forward(self, context: Any, x: Tensor | None, step: int) -> Tensor:
        """Tanh output [n, U, 2] for the noisy action `x` [n, U, 2] at `step` (from 0); `x` is None without a chain."""


def vp_betas(steps: int, beta_min: float, beta_max: float) -> Tensor:
    """Variance-preserving schedule: beta_i = 1 - exp(-beta_min/I - (2i-1)/(2 I^2) (beta_max - beta_min)); [I]."""
    i = torch.arange(1, steps + 1, dtype=torch.float64)
    return 1 - torch.exp(-beta_min / steps - (2 * i - 1) / (2 * steps**2) * (beta_max - beta_min))


def linear_betas(steps: int, beta_min: float, beta_max: float) -> Tensor:
    """beta_i rising linearly from `beta_min` to `beta_max`; [I]."""
    return torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)


SCHEDULES = {"vp": vp_betas, "linear": linear_betas}


def posterior_coefficients(betas: Tensor, prediction: str) -> list[tuple[float, float, float]]:
    """Per step i = 1..I the (c_x, c_p, c_z) of x_{i-1} = c_x x_i + c_p prediction + c_z z.

    With phi_i = 1 - beta_i and phibar_i their running product: for `epsilon`
    x_{i-1} = (x_i - (1-phi_i)/sqrt(1-phibar_i) eps)/sqrt(phi_i) + sqrt(betabar_i) z, and for `sample` (the network
    predicts x_0) the mean of q(x_{i-1} | x_i, x_0); betabar_i = (1-phibar_{i-1})/(1-phibar_i) beta_i, 0 at i = 1.
    """
    phi = 1 - betas.double()
    phibar = phi.cumprod(0)
    before = torch.cat((torch.ones(1, dtype=torch.float64), phibar[:-1]))
    noise = ((1 - before) / (1 - phibar) * betas).sqrt()
    if prediction == "epsilon":
        on_x = phi.rsqrt()
        on_prediction = -(1 - phi) / (1 - phibar).sqrt() * phi.rsqrt()
    else:
        on_x = phi.sqrt() * (1 - before) / (1 - phibar)
        on_prediction = before.sqrt() * betas / (1 - phibar)
    return list(zip(on_x.tolist(), on_prediction.tolist(), noise.tolist(), strict=True))


def reverse_chain(
    denoise: Callable[[Tensor, int], Tensor],
    x: Tensor,
    added: Sequence[Tensor],
    coefficients: list[tuple[float, float]],
) -> Tensor:
    """x_0 from x_I: x_{i-1} = c_x x_i + c_p denoise(x_i, i - 1) + what is added after step i, for i = I..1.

    Args:
        denoise: the prediction for a noisy action, and the step counted from 0.
        x: x_I of any shape.
        added: noise for the steps I..2, scaled.
        coefficients: (c_x, c_p) of the steps 1..I.
    """
    steps = len(coefficients)
    for i in range(steps, 0, -1):
        on_x, on_prediction = coefficients[i - 1]
        kept = added[steps - i].add(x, alpha=on_x) if i > 1 else x * on_x
        x = kept.add(denoise(x, i - 1), alpha=on_prediction)
    return x


class DiffusionActor(nn.Module):
    """x_I ~ N(0, I) denoised in I steps to an action, trained end to end by the critic's gradient.

    Args:
        trunk: a network with `context(state)`, evaluated once per chain, and `forward(context, x, step)`, see `Trunk`.
        steps: I.
        schedule: `vp` or `linear`, with `beta_min` and `beta_max`.
        prediction: what the trunk's output means, `epsilon` (published) or `sample` (x_0).
    """

    spread: Tensor

    def __init__(
        self, trunk: nn.Module, steps: int, schedule: str, beta_min: float, beta_max: float, prediction: str
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.steps = steps
        coefficients = posterior_coefficients(SCHEDULES[schedule](steps, beta_min, beta_max), prediction)
        self.coefficients = [(on_x, on_prediction) for on_x, on_prediction, _ in coefficients]
        spread = torch.tensor([on_noise for *_, on_noise in reversed(coefficients[1:])])
        self.register_buffer("spread", spread.view(-1, 1, 1, 1), persistent=False)

    def forward(self, state: Tensor, noise: Tensor) -> Tensor:
        """One action per state.

        Args:
            state: [*, S].
            noise: [I, *, U, 2], standard normal: x_I, then z for the steps I..2 (the last step adds none).

        Returns:
            x_0, [*, U, 2]; within [-1, 1] for `sample`, unbounded for `epsilon`.
        """
        trunk: Trunk = self.trunk  # type: ignore[assignment]
        shape = noise.shape[1:]
        state, noise = state.flatten(0, -2), noise.flatten(1, -3)
        x, added = noise[0], (noise[1:] * self.spread).unbind()
        if torch.is_grad_enabled() and hasattr(trunk, "chain") and not torch.is_autocast_enabled(x.device.type):
            return trunk.chain(state, x, added, self.coefficients).view(shape)
        context = trunk.context(state)
        network = trunk.forward  # calling the module itself costs as much as a small layer
        return reverse_chain(lambda x, step: network(context, x, step), x, added, self.coefficients).view(shape)


class DirectActor(nn.Module):
    """DDPG's actor: the same trunk, evaluated once, without a chain."""

    steps = 0

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, state: Tensor, noise: Tensor | None = None) -> Tensor:
        """The action for states [*, S]: [*, U, 2] in [-1, 1]; `noise` is not used."""
        trunk: Trunk = self.trunk  # type: ignore[assignment]
        return trunk.forward(trunk.context(state.flatten(0, -2)), None, 0).unflatten(0, state.shape[:-1])
