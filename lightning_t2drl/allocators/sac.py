"""SAC: a normal policy that is rewarded for staying random, by a temperature that is tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_t2drl.allocators.sampling import SamplingAllocator, SamplingConfig
from lightning_t2drl.checks import Misfit, within
from lightning_t2drl.networks.actors.gaussian import GaussianActor
from lightning_t2drl.networks.features import State
from lightning_t2drl.policy import Metrics, Optimise


@dataclass
class SACConfig(SamplingConfig):
    """Keys of `configs/allocator/sac.yaml`."""

    exploration_noise: float = 0.0
    exploration_noise_end: float = 0.0
    decision_noise: float = 0.0
    temperature: float = 0.01
    temperature_learning_rate: float = 1e-3
    target_entropy: float = -1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("", self, temperature=(1e-9, 1e3), temperature_learning_rate=(0, 1), target_entropy=(-100, 100))
        if self.target_noise:
            raise Misfit("target_noise: SAC's target action is random by itself; leave it at 0")


class SACAllocator(SamplingAllocator):
    """Soft actor-critic with a tanh-normal actor.

    The number of users differs, and a miss is given no steps whatever is asked for. So entropy is a mean over the
    numbers that matter: bandwidth of who is attached, steps of hits. `target_entropy` is per number; -1 is the usual.
    """

    Config = SACConfig
    config: SACConfig
    actor: GaussianActor

    def __init__(self, scenario: object, config: SACConfig) -> None:
        super().__init__(scenario, config)  # type: ignore[arg-type]
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))

    def build_actor(self) -> GaussianActor:
        return GaussianActor(self.make_trunk)

    def optimizers_by_name(self) -> dict[str, Optimizer]:
        rate = self.config.temperature_learning_rate
        return super().optimizers_by_name() | {"temperature": self.adam([self.log_temperature], rate)}

    def entropy(self, state: State, log_density: Tensor) -> Tensor:
        """Minus the mean log-density of the numbers that matter, [*, 1] from [*, U, 2]."""
        matters = torch.stack((state["attached"], state["hit"]), -1)
        return -((log_density * matters).sum((-1, -2)) / matters.sum((-1, -2)).clamp_min(1)).unsqueeze(-1)

    def actor_loss(self, state: State, noise: Tensor) -> Tensor:
        output, log_density = self.actor.sample(state, noise)
        worth = self.worth(state, self.to_shares(state, output))
        return -worth - self.log_temperature.exp().detach() * self.entropy(state, log_density).mean()

    def update_actor(self, state: State, optimise: Optimise) -> Metrics:
        metrics = super().update_actor(state, optimise)
        with torch.no_grad():
            entropy = self.entropy(state, self.actor.sample(state, self.draw_noise(state))[1]).mean()
        optimise("temperature", self.log_temperature * (entropy - self.config.target_entropy))
        return metrics | {"entropy": entropy, "temperature": self.log_temperature.detach().exp()}

    @torch.no_grad()
    def target(self, reward: Tensor, next_state: State, noise: Tensor) -> Tensor:
        """Y = r + gamma (Q'(s', a') + temperature x entropy), a' from the present actor, [b, 1 or U]."""
        output, log_density = self.actor.sample(next_state, noise)
        value = self.value(self.target_critics, next_state, self.to_shares(next_state, output))
        value = value + self.log_temperature.exp() * self.entropy(next_state, log_density)
        return reward + self.config.discount * self.future(next_state, value)
