"""Train the quickstart with an actor and with a cacher of one's own, both from mine.py beside this script.

python own_actor.py
"""

import pandas as pd

from lightning_t2drl import train

OWN = {"actor": "allocator.actor._target_=mine.Attention", "cacher": "cacher._target_=mine.WorthPerGigabyte"}


def main(frames: int = 80, episodes: int = 50, directory: str = "runs/own") -> pd.DataFrame:
    """Mean and standard error of each run's utility and hit ratio, beside RCARS."""
    tables = {}
    for name, override in OWN.items():
        run = train(
            "experiment=quickstart",
            override,
            frames=frames,
            output_dir=f"{directory}/{name}",
            evaluation__final_episodes=episodes,
        )
        tables[f"own {name}"] = run.schemes
    table = pd.concat(tables, names=["run"]).reset_index("run")
    return table[table["metric"].isin(["total_utility", "hit_ratio"])]


if __name__ == "__main__":
    print(main().to_string(index=False))
