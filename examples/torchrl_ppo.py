"""PPO, TorchRL's own, on the slot timescale under popular caches: an on-policy baseline beside the allocators.

python torchrl_ppo.py
"""

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss

from lightning_t2drl import EdgeAIGCEnv, load_scenario
from lightning_t2drl.cachers.popular import PopularCacher, PopularConfig
from lightning_t2drl.networks.features import UserFeatures
from lightning_t2drl.networks.heads import CompetitiveHead, CompetitiveHeadConfig


class Users(nn.Module):
    """From each user's features and their mean: `outputs` numbers per user, [*, U, outputs]."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers = (nn.Linear(2 * UserFeatures.PER_USER, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.net = nn.Sequential(*layers, nn.Linear(64, outputs))

    def forward(self, users: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat((users, users.mean(-2, keepdim=True).expand_as(users)), -1))


class Policy(nn.Module):
    """Mean and deviation of the action, [*, 2 U] each."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.split = Users(4), NormalParamExtractor(scale_mapping="biased_softplus_0.3")

    def forward(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loc, scale = self.split(self.users(users))
        return loc.flatten(-2), scale.flatten(-2)


def main(num_envs: int = 32, rounds: int = 40, epochs: int = 4, minibatch: int = 256) -> dict[str, float]:
    """Mean utility per slot of the first and of the last round; a round is an episode of every world."""
    torch.manual_seed(0)
    scenario = load_scenario("paper")
    env, features = EdgeAIGCEnv(scenario, num_envs=num_envs, seed=0), UserFeatures(scenario)
    cacher, head = PopularCacher(scenario, PopularConfig()), CompetitiveHead(CompetitiveHeadConfig(step_scale=6.0))
    actor = ProbabilisticActor(
        TensorDictModule(Policy(), ["users"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(nn.Sequential(Users(1), nn.Flatten(-2), nn.LazyLinear(1)), in_keys=["users"])
    loss = ClipPPOLoss(actor, critic, entropy_bonus=False)
    optimizer, found = None, []
    for _ in range(rounds):
        cells, slots = env.reset()["cells"], []
        for slot in range(scenario.slots_per_episode):
            if slot % scenario.slots_per_frame == 0:
                cells = env.latch(cacher.decide(cells))
            state = features(scenario, cells)
            with torch.no_grad():
                step = actor(TensorDict({"users": state["features"]}, cells.batch_size))
            cells = env.play(head(step["action"].unflatten(-1, (-1, 2)), state))
            slots.append(step.set("reward", cells["reward", "slot"]))
        batch = torch.stack(slots).reshape(-1)
        found.append(batch["reward"].mean().item())
        with torch.no_grad():  # an allocation does not change the next slot: no discount, so no advantage to estimate
            batch["value_target"] = batch["reward"]
            advantage = batch["reward"] - critic(batch.clone())["state_value"]
            batch["advantage"] = (advantage - advantage.mean()) / advantage.std().clamp_min(1e-6)
        optimizer = optimizer or torch.optim.Adam(loss.parameters(), lr=1e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(batch)).split(minibatch):
                losses = loss(batch[rows])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                optimizer.step()
    return {"first round": found[0], "last round": found[-1]}


if __name__ == "__main__":
    for name, utility in main().items():
        print(f"{name:>14}: {utility:.4f} per slot")
