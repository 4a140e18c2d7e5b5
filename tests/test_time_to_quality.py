"""Curves of quality over cost: what an agent from outside is measured by, the page, and that no run is repeated."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from benchmarks import agents, time_to_quality
from benchmarks.time_to_quality import PAGE, POINTS, Point, finished, main

SMALL = ["env.users=4", "env.frames_per_episode=2", "env.slots_per_frame=2", "env.num_envs=2", "evaluation.episodes=3"]


@pytest.mark.parametrize(
    ("agent", "steps"),
    [("SAC learning_starts=4 gradient_steps=2", [0, 12, 36]), ("PPO n_steps=4 n_epochs=1 batch_size=4", [0, 2, 4])],
)
def test_an_agent_is_evaluated_along_the_way(agent, steps):
    points = list(agents.points(agent, [*SMALL, "frames=4", "evaluation.every_n_frames=2"]))
    frames, slots, updates, cpu, wall, utilities = zip(*points, strict=True)
    assert frames == (0, 2, 4) and slots == (0, 8, 16) and list(updates) == steps
    assert cpu[0] == wall[0] == 0 and cpu[2] > cpu[1] > 0
    assert all(0 < utility < 1 for utility in utilities) and len(set(utilities)) == 3


def test_shares_are_of_the_oracle_in_the_world_that_is_trained_in(tmp_path, monkeypatch):
    def evaluate(world, **_):
        env = yaml.safe_load(Path(world.removeprefix("env=")).read_text())
        rows = {"scheme": "a", "metric": "utility", "mean": env["users"] + env["bandwidth_mhz"]}
        return SimpleNamespace(name="a", schemes=pd.DataFrame([rows]))

    monkeypatch.setattr(time_to_quality, "evaluate", evaluate)
    found = time_to_quality.references("t2drl_cells", ["env.bandwidth_mhz=5"], False, 2, tmp_path)
    assert found == {"oracle": 75}  # of cells7 with its seventy users


def test_runs_that_are_there_are_not_repeated(tmp_path, monkeypatch):
    done = []

    def train(who, experiment, words, work):
        done.append((who, *words))
        quality = 0.96 if who == "SAC" else 0.985
        return [Point(0, 0, 0, 0.0, 0.0, 0.3), Point(5, 800, 60, 2.0, 3.0, quality * 0.6)]

    monkeypatch.setattr(time_to_quality, "train", train)
    monkeypatch.setattr(time_to_quality, "train_agent", train)
    monkeypatch.setattr(time_to_quality, "references", lambda *_: {"oracle": 0.6, "popular": 0.594, "equal": 0.48})
    words = ["--experiment", "quickstart", "--agent", "SAC", "--output", str(tmp_path), "frames=5"]
    first = main([*words, "--seeds", "1"])
    assert len(done) == 2 and "| SAC | 1 | 96.00% |" in first
    page = main([*words, "--seeds", "2"])
    assert len(done) == 4 and len(set(done)) == 4
    assert page == (tmp_path / PAGE).read_text()
    assert "| 95% | SAC | 2 of 2 | 5 [5, 5] | 800 [800, 800] | 60 [60, 60] | 2 [2, 2] | 3 [3, 3] |" in page
    assert "| 98% | SAC | 0 of 2 | never |" in page and "| SAC | 2 | 96.00% [96.00%, 96.00%] |" in page
    assert "99.00% of it" in page
    assert {len(points) for points in finished(tmp_path / POINTS).values()} == {2}
