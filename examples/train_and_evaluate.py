"""Train, evaluate and use a pair of policies from Python.

python train_and_evaluate.py
"""

import torch

from lightning_t2drl import EdgeAIGCEnv, evaluate, load_policy, train


def main(frames: int = 80, episodes: int = 50, directory: str = "runs/example") -> float:
    """Mean utility per slot of the trained pair, played by hand."""
    run = train("experiment=quickstart", frames=frames, output_dir=directory, evaluation__final_episodes=episodes)
    print(run.evaluations[["frame", "utility", "hit_ratio"]])

    # The same policy where twice as many users share the cell, beside RCARS; the oracle would take minutes.
    more_users = evaluate(
        checkpoint=f"{directory}/checkpoints/last",
        env={"users": 20},
        episodes=episodes,
        references=["rcars"],
        output_dir=f"{directory}-20-users",
    )
    print(more_users.schemes.pivot(index="metric", columns="scheme", values="mean").round(3))

    # Decision by decision.
    policy = load_policy(f"{directory}/checkpoints/last")
    env = EdgeAIGCEnv(policy.scenario, num_envs=8, seed=1)
    cells, rewards = env.reset()["cells"], []
    for slot in range(policy.scenario.slots_per_episode):
        frame_start = slot % policy.scenario.slots_per_frame == 0
        action = policy.decide(cells, frame_start=frame_start, episode_start=slot == 0)
        if frame_start:
            env.latch(action["cache"])
        cells = env.play(action["allocation"])
        rewards.append(cells["reward", "slot"])
    return torch.stack(rewards).mean().item()


if __name__ == "__main__":
    print(f"{main():.4f} per slot")
