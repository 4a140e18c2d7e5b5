"""What an actor's spread is made of, and whether its critics point where the true utility rises."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from lightning_t2drl.allocators.objectives import true_utility
from lightning_t2drl.system.serving import cell_mean, situation

SAMPLES = 16  # chains per state, and perturbed actions per state
PERTURBATION = 0.3  # standard deviation of what is added to the actor's output


def actor_and_critics(allocator: Any, cells: TensorDict, generator: torch.Generator) -> dict[str, float]:
    """The actor's noise, and what its critics know of the true utility; see `loop.diagnosis` for the names.

    Args:
        allocator: owner of actor, critics, head and scenario.
        cells: of one slot, [N, B].
        generator: of the perturbations; the actor's noise is the allocator's own.
    """
    state = {**situation(cells), **allocator.state(cells).to_dict()}
    many = {key: value.expand(SAMPLES, *value.shape) for key, value in state.items()}
    measured = {}
    outputs = allocator.actor(many, allocator.decision_noise(many, explore=False)).float()
    if allocator.actor.draws:
        actions = allocator.actor.squash(outputs)[:, state["attached"]]  # [samples, users, 2]
        whole = actions.flatten(0, 1).var(0).clamp_min(1e-12)
        measured["actor_spread"] = whole.sqrt().mean().item()
        measured["chain_noise"] = (actions.var(0).mean(0) / whole).clamp_max(1).sqrt().mean().item()
    spread = torch.randn(outputs.shape, generator=generator, device=generator.device)
    perturbed = outputs[:1] + PERTURBATION * spread
    judged, true = _worth(allocator, many, perturbed)
    measured["critic_correlation"] = _cosine(judged - judged.mean(0), true - true.mean(0), 0)
    with torch.enable_grad():
        leaf = perturbed.clone().requires_grad_()
        gradients = [
            torch.autograd.grad(worth.sum(), leaf, retain_graph=True)[0] for worth in _worth(allocator, many, leaf)
        ]
    for column, name in enumerate(("bandwidth", "steps")):
        judged, true = (gradient[..., column] for gradient in gradients)
        measured[f"critic_cosine_{name}"] = _cosine(judged, true, -1)
    return {name: value for name, value in measured.items() if value == value}


def _worth(allocator: Any, state: dict[str, Tensor], output: Tensor) -> tuple[Tensor, Tensor]:
    """The cell's value of outputs by the critics and in truth, [*] each."""
    shares = allocator.to_shares(state, output)
    value = allocator.value(allocator.critics, state, shares)
    judged = cell_mean(value, state["attached"]) if allocator.per_user else value.squeeze(-1)
    return judged, cell_mean(true_utility(allocator.scenario, state, shares), state["attached"])


def _cosine(one: Tensor, other: Tensor, dim: int) -> float:
    """Mean cosine along a dimension, over those where neither is 0; NaN where there is none."""
    norms = one.norm(dim=dim) * other.norm(dim=dim)
    return ((one * other).sum(dim)[norms > 1e-12] / norms[norms > 1e-12]).mean().item()
