"""An actor and a cacher of one's own. Beside this file:

t2drl train experiment=quickstart allocator.actor._target_=mine.Attention
t2drl train experiment=quickstart cacher._target_=mine.WorthPerGigabyte
"""

from dataclasses import dataclass

import torch
from torch import nn

from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.networks.features import UserFeatures
from lightning_t2drl.system.caching import fill_in_order


@dataclass
class AttentionConfig:
    _target_: str = ""
    width: int = 32


class Attention(nn.Module):
    """Users attend to each other; the noisy action and the diffusion step come along."""

    Config, Features = AttentionConfig, UserFeatures

    def __init__(self, scenario, steps, config):
        super().__init__()
        self.embed = nn.Linear(UserFeatures.PER_USER, config.width)
        self.action = nn.Linear(2, config.width)
        self.step = nn.Embedding(max(steps, 1), config.width)
        self.attend = nn.MultiheadAttention(config.width, num_heads=4, batch_first=True)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(config.width, 2))

    def context(self, state):
        return self.embed(state["features"])

    def forward(self, context, x, step):
        h = context if x is None else context + self.action(x) + self.step.weight[step]
        return self.out(h + self.attend(h, h, h, need_weights=False)[0])


@dataclass
class WorthConfig:
    _target_: str = ""
    learning_rate: float = 0.05
    exploration: float = 1.0


class WorthPerGigabyte(Cacher):
    """Learns what each model adds to the frame's reward in each popularity state, and caches the best per gigabyte."""

    Config = WorthConfig
    learns = True

    def __init__(self, scenario, config):
        super().__init__(scenario, config)
        self.worth = nn.Linear(scenario.popularity_width, scenario.models + 1)

    def state(self, observation):
        return observation.select("popularity")

    @torch.no_grad()
    def decide(self, observation, explore=False):
        worth = self.worth(observation["popularity"])[..., 1:]
        if explore:
            noise = torch.randn(worth.shape, generator=self.generator)
            worth = worth + self.config.exploration * (1 - self.progress) * noise
        return fill_in_order(self.scenario, worth / self.scenario.model_storage)

    def update(self, batch, optimise):
        worth = self.worth(batch["state", "popularity"])
        reward = worth[..., 0] + (worth[..., 1:] * batch["cache"]).sum(-1)
        loss = (reward - batch["reward"].squeeze(-1)).square().mean()
        optimise("worth", loss)
        return {"loss": loss.detach()}

    def optimizers_by_name(self):
        return {"worth": self.adam(self.worth.parameters(), self.config.learning_rate)}
