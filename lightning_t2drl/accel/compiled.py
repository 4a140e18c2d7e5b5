"""An allocator's gradient update as one compiled graph: for long runs, where some 20 s of compiling pay back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer

from lightning_t2drl.accel.kernels import fast_products
from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator
from lightning_t2drl.policy import Metrics

Step = Callable[..., Sequence[Tensor]]
Backend = Callable[[fx.GraphModule, list[Tensor]], Step]

ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")


def inductor(graph: fx.GraphModule, inputs: list[Tensor]) -> Step:
    """The graph as machine code."""
    # In here, because these parts of PyTorch may be others in another version: it would train without compiling.
    import torch._inductor

    from lightning_t2drl.accel.narrow_products import NarrowProducts

    options: dict[str, Any] = {}
    if inputs[0].device.type == "cpu":
        # Calls between kernels in C++ too: faster, and one file compiles in a third of the time that many files take.
        options = {"cpp_wrapper": True, "post_grad_custom_pre_pass": NarrowProducts()}
    return torch._inductor.compile(graph, [*inputs], options)


class _With(nn.Module):
    """Calls a function while tensors of the allocator are replaced, see `functional_call`."""

    def __init__(self, allocator: ActorCriticAllocator) -> None:
        super().__init__()
        self.allocator = allocator

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(*inputs)


class CompiledUpdate:
    """`ActorCriticAllocator.update` with backward, clipping, Adam and targets in one graph, equal up to rounding.

    The graph takes all it reads and changes as inputs, and is traced once for each number of rows. Parameters and
    Adam's state are those of the allocator and its optimizers, changed in place, so that everything else, checkpoints
    too, is as without compiling. Nothing is changed where compiling fails.

    Args:
        allocator: whose losses are minimised.
        optimizers: its `critic` and `actor` optimizers, both plain Adam.
        clip: largest norm of one optimizer's gradient; 0 for none.
        backend: what makes a step of a graph.
    """

    MODULES: ClassVar[dict[str, str]] = {"critic": "critics", "actor": "actor"}  # by optimizer

    def __init__(
        self,
        allocator: ActorCriticAllocator,
        optimizers: dict[str, Optimizer],
        clip: float,
        backend: Backend = inductor,
    ) -> None:
        self.allocator = allocator
        self.optimizers = optimizers
        self.clip = clip
        self.backend = backend
        self._with = _With(allocator)
        named = dict(self._with.named_parameters())
        self._names, self._tensors = list(named), list(named.values())
        self._parameters = {name: list(getattr(allocator, part).parameters()) for name, part in self.MODULES.items()}
        self._draws = 2 if allocator.bootstraps else 1
        self._adam_states: dict[str, tuple[Any, list[list[Tensor]]]] = {}
        self._steps: dict[int, Step] = {}  # by number of rows

    @property
    def ran(self) -> bool:
        """Whether a graph has been compiled."""
        return bool(self._steps)

    def __call__(self, batch: dict[str, Tensor]) -> Metrics:
        """One update on a batch of transitions [b, width] by field."""
        rows = len(batch["state"])
        noise = [self.allocator.draw_noise((rows,)) for _ in range(self._draws)]
        adam_state = [self._adam_state(name) for name in self.MODULES]
        corrections = [
            self._corrections(name, steps[0]) for name, (*_, steps) in zip(self.MODULES, adam_state, strict=True)
        ]
        moments = [tensor for lists in adam_state for tensors in lists for tensor in tensors]
        inputs = [*batch.values(), *noise, *corrections, *self._tensors, *moments]
        with fast_products(rows), torch.no_grad():
            if rows not in self._steps:
                self._steps[rows] = self._compile(list(batch), inputs)
            critic_loss, actor_loss = self._steps[rows](*inputs)
        return {"critic_loss": critic_loss, "actor_loss": actor_loss}

    def _adam_state(self, name: str) -> list[list[Tensor]]:
        """Adam's moments and counters of steps by parameter, made as Adam makes them where there are none yet."""
        states, parameters = self.optimizers[name].state, self._parameters[name]
        kept_of, kept = self._adam_states.get(name, (None, []))
        if kept_of is not states:  # listed once: an optimizer that is loaded anew gets a new dict
            for p in parameters:
                if not states[p]:
                    zeros = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                    states[p] = {"step": torch.zeros((), device=p.device), **zeros}
            kept = [[states[p][key] for p in parameters] for key in ADAM_STATE]
            self._adam_states[name] = states, kept
        return kept

    def _corrections(self, name: str, steps: Tensor) -> Tensor:
        """Adam's step size and the divisor of its root for the coming step, both corrected for the moments' start."""
        group, step = self.optimizers[name].param_groups[0], steps.item() + 1
        first, second = group["betas"]
        size, root = group["lr"] / (1 - first**step), (1 - second**step) ** 0.5
        return torch.tensor([size, root], device=self.allocator.device)

    def _compile(self, fields: list[str], inputs: list[Tensor]) -> Step:
        """The whole update as a step of these inputs."""

        def update(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            values = iter(inputs)
            batch = _take(values, fields)
            noise = list(islice(values, self._draws))
            corrections = _take(values, self.MODULES)
            tensors = _take(values, self._names)
            return functional_call(self._with, tensors, (self._update, batch, noise, corrections, values))

        # Tracing computes the update as well: on copies.
        copies = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
        graph = make_fx(update)(*copies)
        for node in graph.graph.nodes:
            node.meta.clear()  # each tensor was noted in a world of its own, which compilers do not take
        return self.backend(graph, inputs)

    def _update(
        self, batch: dict[str, Tensor], noise: list[Tensor], corrections: dict[str, Tensor], moments: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        allocator = self.allocator
        state, target = batch["state"], batch["reward"]
        if allocator.bootstraps:
            target = allocator.target(target, batch["next_state"], noise[0])
        shares = batch["shares"].unflatten(-1, (-1, 2))
        with torch.enable_grad():
            critic_loss = allocator.critic_loss(state, shares, target)
        self._minimise("critic", critic_loss, corrections["critic"], moments)
        with torch.enable_grad():
            actor_loss = allocator.actor_loss(state, noise[-1])
        self._minimise("actor", actor_loss, corrections["actor"], moments)
        for follower, followed in allocator.followers():
            follower.lerp_(followed, allocator.config.target_rate)
        return critic_loss.detach(), actor_loss.detach()

    def _minimise(self, name: str, loss: Tensor, corrections: Tensor, moments: Iterator[Tensor]) -> None:
        parameters = list(getattr(self.allocator, self.MODULES[name]).parameters())
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)  # zeros where one is not used
        if self.clip:
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            factor = (self.clip / (norm + 1e-6)).clamp_max(1.0)
            gradients = tuple(g * factor for g in gradients)
        means, squares, steps = (list(islice(moments, len(parameters))) for _ in ADAM_STATE)
        group = self.optimizers[name].param_groups[0]
        adam(parameters, gradients, means, squares, corrections, group["betas"], group["eps"])
        for step in steps:
            step.add_(1)


def _take(values: Iterator[Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The next of `values`, by name."""
    return dict(zip(names, islice(values, len(names)), strict=True))


def adam(
    parameters: list[Tensor],
    gradients: Sequence[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    corrections: Tensor,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """A step of `torch.optim.Adam` without its extras, in place; `corrections` as by `CompiledUpdate`."""
    (first, second), (size, root) = betas, corrections.unbind()
    for p, g, mean, square in zip(parameters, gradients, means, squares, strict=True):
        mean.lerp_(g, 1 - first)
        square.mul_(second).addcmul_(g, g, value=1 - second)
        p.sub_(size * mean / (square.sqrt() / root + epsilon))
