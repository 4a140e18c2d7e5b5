"""What an actor learns from: the critics' gradient, actions weighted by the critics, or the true utility itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_t2drl.networks.features import State
from lightning_t2drl.system import service
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import serve, situation

# policy_gradient: up the critics' gradient, through head, amender and the whole chain (the paper's). q_weighted: the
# forward process, which the paper leaves out. analytic: up the gradient of what the slot truly brings.
OBJECTIVES = ("policy_gradient", "q_weighted", "analytic")

LEAST_SHARE = 1e-4  # of bandwidth: below it the delay's gradient is of no use
SOFT = 0.02  # width of the deadline for the gradient, in deadlines


def true_utility(scenario: Scenario, state: State, shares: Tensor) -> Tensor:
    """What shares [*, U, 2] bring each user in a slot, [*, U], with a gradient.

    `serve` is differentiable where utility is continuous. It jumps at the deadline; there the gradient is that of a
    steep sigmoid. Below A1 steps and beyond twice the deadline utility is flat, and so is its gradient.

    Args:
        state: also holds the slot's situation, see `serving.situation`.
    """
    curve = service.profile(scenario, state["request"])
    steps = service.steps_of(scenario, state["request"], shares[..., 1])
    served = serve(scenario, **situation(state), bandwidth=shares[..., 0].clamp_min(LEAST_SHARE), steps=steps)
    late = ((served["delay"] / curve.deadline - 1) / SOFT).sigmoid() * state["attached"]
    return served["utility"] - curve.penalty * (late - late.detach())


def q_weighted(allocator: Any, state: State, noise: Tensor) -> Tensor:
    """Denoise towards the actor's own actions, weighted by how far the critics prefer them to the others.

    For every state [b] some candidates are drawn, with exploration; each counts by what its value exceeds the
    candidates' mean by, 0 if it does not. No gradient passes through the critics or the chain.

    Args:
        allocator: owner of actor and critics.
        noise: [draws + 1 + levels, candidates, b, U, 2]: of the chains, of the exploration, and of the denoising.
    """
    actor = allocator.actor
    chain, spread, levels = noise.split((actor.draws, 1, actor.levels))
    many = {key: value.expand(noise.shape[1], *value.shape) for key, value in state.items()}
    attached = many["attached"].float()
    users = attached.sum(-1).clamp_min(1)
    with torch.no_grad():
        clean = actor(many, chain).float() + spread[0]
        value = allocator.value(allocator.critics, many, allocator.to_shares(many, clean))
        value = (value * attached).sum(-1) / users if allocator.per_user else value.squeeze(-1)
        advantage = (value - value.mean(0)).clamp_min(0)
        weight = advantage / advantage.mean().clamp_min(1e-9)
    loss = (actor.denoising_loss(many, clean, levels).float() * attached).sum(-1) / users
    return (weight * loss).mean()
