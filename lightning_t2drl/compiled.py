"""An allocator's gradient update as one compiled graph: for long runs, where half a minute of compiling pays back."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.optim import Optimizer

from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator
from lightning_t2drl.kernels import fast_products
from lightning_t2drl.policy import Metrics

Moments = tuple[list[Tensor], list[Tensor]]  # Adam's exp_avg and exp_avg_sq by parameter


class _Loss(nn.Module):
    """One of the allocator's losses as a module, so that it can be called with parameters of one's choice."""

    def __init__(self, allocator: ActorCriticAllocator, name: str) -> None:
        super().__init__()
        self.allocator = allocator
        self.loss_name = name

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.allocator, self.loss_name)(*inputs)


class CompiledUpdate:
    """`ActorCriticAllocator.update` with backward, clipping, Adam and targets in one graph, equal up to rounding.

    Parameters and Adam's moments are those of the allocator and its optimizers, changed in place, so that everything
    else, checkpoints too, is as without compiling. Nothing is changed where compiling fails.

    Args:
        allocator: whose losses are minimised.
        optimizers: its `critic` and `actor` optimizers, both plain Adam.
        clip: largest norm of one optimizer's gradient; 0 for none.
        backend: of `torch.compile`.
    """

    # Calls between kernels in C++ too: faster, and one file takes a third of the time to compile that many files take.
    OPTIONS: ClassVar[dict[str, Any]] = {"cpp_wrapper": True}

    def __init__(
        self,
        allocator: ActorCriticAllocator,
        optimizers: dict[str, Optimizer],
        clip: float,
        backend: Any = "inductor",
    ) -> None:
        self.allocator = allocator
        self.optimizers = optimizers
        self.clip = clip
        self.modules = {"critic": allocator.critics, "actor": allocator.actor}
        self.prefixes = {"critic": "allocator.critics.", "actor": "allocator.actor."}
        self.losses = {name: _Loss(allocator, f"{name}_loss") for name in self.modules}
        self.ran = False  # whether it has been compiled
        options = self.OPTIONS if backend == "inductor" and allocator.device.type == "cpu" else None
        self._step = torch.compile(self._whole_update, fullgraph=True, dynamic=False, backend=backend, options=options)

    def __call__(self, batch: dict[str, Tensor]) -> Metrics:
        """One update on a batch of transitions [b, width] by field."""
        allocator, rows = self.allocator, len(batch["state"])
        noise = [allocator.draw_noise((rows,)) for _ in range(2 if allocator.bootstraps else 1)]
        rates = {name: torch.tensor(self.optimizers[name].param_groups[0]["lr"]) for name in self.modules}
        adam_state = {name: self._adam_state(name) for name in self.modules}
        moments = {name: kept for name, (kept, _) in adam_state.items()}
        steps = {name: counters[0] + 1 for name, (_, counters) in adam_state.items()}
        with fast_products(rows), torch.no_grad():
            critic_loss, actor_loss = self._step(batch, noise, rates, moments, steps)
        for _, counters in adam_state.values():
            torch._foreach_add_(counters, 1)
        self.ran = True
        return {"critic_loss": critic_loss, "actor_loss": actor_loss}

    def _adam_state(self, name: str) -> tuple[Moments, list[Tensor]]:
        """Adam's moments and counters of steps, made as Adam makes them where there are none yet."""
        optimizer, parameters = self.optimizers[name], list(self.modules[name].parameters())
        for p in parameters:
            if not optimizer.state[p]:
                zeros: dict[str, Any] = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": torch.zeros((), device=p.device), **zeros}
        exp_avg, exp_avg_sq, step = (
            [optimizer.state[p][key] for p in parameters] for key in ("exp_avg", "exp_avg_sq", "step")
        )
        return (exp_avg, exp_avg_sq), step

    def _whole_update(
        self,
        batch: dict[str, Tensor],
        noise: list[Tensor],
        rates: dict[str, Tensor],
        moments: dict[str, Moments],
        steps: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        allocator = self.allocator
        state, target = batch["state"], batch["reward"]
        if allocator.bootstraps:
            target = allocator.target(target, batch["next_state"], noise[0])
        shares = batch["shares"].unflatten(-1, (-1, 2))
        adam_state = {name: (moments[name], rates[name], steps[name]) for name in self.modules}
        critic_loss = self._minimise("critic", (state, shares, target), *adam_state["critic"])
        actor_loss = self._minimise("actor", (state, noise[-1]), *adam_state["actor"])
        allocator.update_targets()
        return critic_loss, actor_loss

    def _minimise(self, name: str, inputs: tuple[Tensor, ...], moments: Moments, rate: Tensor, step: Tensor) -> Tensor:
        named = self.modules[name].named_parameters()
        parameters: dict[str, Tensor] = {self.prefixes[name] + key: p for key, p in named}

        def loss(values: dict[str, Tensor]) -> Tensor:
            return functional_call(self.losses[name], values, inputs)

        gradients, value = grad_and_value(loss)(parameters)
        ordered = [gradients[key] for key in parameters]
        if self.clip:
            norm = torch.stack([g.square().sum() for g in ordered]).sum().sqrt()
            ordered = [g * (self.clip / (norm + 1e-6)).clamp_max(1.0) for g in ordered]
        group = self.optimizers[name].param_groups[0]
        adam(list(parameters.values()), ordered, moments, rate, step, group["betas"], group["eps"])
        return value


def adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    moments: Moments,
    rate: Tensor,
    step: Tensor,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """The `step`-th step of `torch.optim.Adam` without its extras, in place."""
    first, second = betas
    size, root = rate / (1 - first**step), (1 - second**step).sqrt()
    for p, g, mean, square in zip(parameters, gradients, *moments, strict=True):
        mean.lerp_(g, 1 - first)
        square.mul_(second).addcmul_(g, g, value=1 - second)
        p.sub_(size * mean / (square.sqrt() / root + epsilon))
