"""EdgeAIGCEnv in TorchRL's hands: a rollout of random decisions, then a collector with a policy of one's own.

python torchrl_collector.py
"""

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector

from lightning_t2drl import EdgeAIGCEnv, load_scenario


def main(num_envs: int = 16, frames: int = 1600) -> dict[str, float]:
    """Mean utility per slot of random decisions and of a fresh network, over whole episodes."""
    torch.manual_seed(0)
    scenario = load_scenario("paper")
    env = EdgeAIGCEnv(scenario, num_envs=num_envs, seed=0)

    rollout = env.rollout(scenario.slots_per_episode)  # random decisions, one episode
    found = {"random": rollout["next", "cells", "reward", "slot"].mean().item()}

    network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2), nn.Tanh())
    popular = torch.zeros(scenario.models, dtype=torch.bool)
    popular[:4] = True  # the first four fit

    def decide(cells: TensorDict) -> TensorDict:
        """Cache the most popular models; the network sees gain, payloads and whether the request is a hit."""
        hit = cells["cache"].gather(-1, cells["request"])
        payload = torch.stack((cells["input_bits"], cells["output_bits"]), -1) / 8e7
        seen = torch.cat((cells["gain"].log10().div(10).unsqueeze(-1), payload, hit.float().unsqueeze(-1)), -1)
        cache = popular.expand(*cells.batch_size, -1)
        return TensorDict({"cache": cache, "allocation": network(seen)}, batch_size=cells.batch_size)

    policy = TensorDictModule(decide, in_keys=["cells"], out_keys=[("cells", "action")])
    sizes = {"frames_per_batch": frames, "total_frames": frames}
    collector = Collector(env, policy, auto_register_policy_transforms=False, **sizes)
    for batch in collector:  # [num_envs, slots], ready for a replay buffer or a loss
        found["fresh network"] = batch["next", "cells", "reward", "slot"].mean().item()
    collector.shutdown()
    return found


if __name__ == "__main__":
    for name, utility in main().items():
        print(f"{name:>14}: {utility:.4f} per slot")
