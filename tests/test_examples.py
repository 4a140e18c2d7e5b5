"""Every script and the notebook of examples/ runs, on small settings."""

import importlib
import json
import math
import sys
from pathlib import Path

import matplotlib
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHORT = ("env.frames_per_episode=2", "env.slots_per_frame=2")
TINY = (*SHORT, "env.num_envs=2", "evaluation.episodes=2")
THREE_MODELS = (*SHORT, "env.users=3", "env.model_storage_gb=[4,6,8]", "env.storage_capacity_gb=10")  # for the oracle


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In an empty directory, with the examples beside the script, and experiments made small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    matplotlib.use("agg")
    import lightning_t2drl

    train, evaluate = lightning_t2drl.train, lightning_t2drl.evaluate

    def smaller(*words, **keys):
        return evaluate(*words, *(SHORT if "checkpoint" in keys else THREE_MODELS), **keys)

    monkeypatch.setattr(lightning_t2drl, "train", lambda *words, **keys: train(*words, *TINY, **keys))
    monkeypatch.setattr(lightning_t2drl, "evaluate", smaller)
    yield
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_train_and_evaluate(tmp_path):
    utility = importlib.import_module("train_and_evaluate").main(frames=2, episodes=2, directory="run")
    assert math.isfinite(utility)
    assert (tmp_path / "run" / "summary.json").exists()


def test_own_actor():
    table = importlib.import_module("own_actor").main(frames=2, episodes=2, directory="own")
    assert {"own actor", "own cacher"} == set(table["run"])
    assert table["mean"].notna().all()


def test_own_actor_and_cacher_are_short():
    lines = (EXAMPLES / "mine.py").read_text().splitlines()
    actor, cacher = (
        next(i for i, line in enumerate(lines) if line.startswith(f"class {name}("))
        for name in ("Attention", "WorthPerGigabyte")
    )
    between = next(i for i in range(actor, len(lines)) if lines[i] == "@dataclass")
    assert between - actor <= 30
    assert len(lines) - cacher <= 50


def test_torchrl_collector():
    found = importlib.import_module("torchrl_collector").main(num_envs=2, frames=8)
    assert all(math.isfinite(utility) for utility in found.values())


def test_torchrl_ppo():
    found = importlib.import_module("torchrl_ppo").main(num_envs=2, rounds=2, epochs=1, minibatch=100)
    assert all(math.isfinite(utility) for utility in found.values())


@pytest.mark.parametrize("agent", ["SAC", "PPO", "DQN"])
def test_stable_baselines3_agents(agent):
    script = importlib.import_module("stable_baselines3_agents")
    script.AGENTS["PPO"][2].update(n_steps=2, batch_size=4)
    script.AGENTS["DQN"][2].update(learning_starts=1)
    found = script.main(agent, steps=2 if agent == "DQN" else 8, episodes=1, num_envs=2)
    assert set(found) == {"popular, equal", agent} and all(math.isfinite(utility) for utility in found.values())


def test_rllib_ppo():
    pytest.importorskip("ray.rllib", reason="RLlib is not installed: it pins another Gymnasium")
    found = importlib.import_module("rllib_ppo").main(rounds=1, slots=8, frames_per_episode=2, slots_per_frame=2)
    assert set(found) == {"one cell", "three cells"} and all(math.isfinite(utility) for utility in found.values())


def test_every_script_is_run_here():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"mine"}
    assert scripts <= set(Path(__file__).read_text().split('"'))


def test_other_peoples_agents_take_few_lines():
    files = ("stable_baselines3_agents", "torchrl_collector", "torchrl_ppo", "rllib_ppo")
    assert sum(len((EXAMPLES / f"{name}.py").read_text().splitlines()) for name in files) <= 300


def test_notebook():
    cells = json.loads((EXAMPLES / "first_look.ipynb").read_text())["cells"]
    variables = {}
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"], "outputs are not committed"
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", ()):
            source = "FRAMES, EPISODES, DIRECTORY = 2, 2, 'look'"
        exec(compile(source, "first_look.ipynb", "exec"), variables)
    assert len(variables["run"].evaluations) > 0
