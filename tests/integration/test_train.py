"""train.py for real, tiny: every experiment runs, runs repeat exactly, and go on exactly where they stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator
from lightning_t2drl.errors import NonFiniteError, UserError
from lightning_t2drl.loop.checkpoints import AtomicCheckpointIO, load_checkpoint
from lightning_t2drl.system import load_scenario
from lightning_t2drl.system.scenario_config import CONFIG_ROOT, build_scenario

EXPERIMENTS = sorted(path.stem for path in (CONFIG_ROOT / "experiment").glob("*.yaml"))
LEARNERS = ["t2drl", "quickstart"]
DRAWN = ["quickstart", "rcars", "t2drl_cells", "t2drl_mixed"]  # of a kind each; drawing takes half of a short run


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_and_leaves_its_files(experiment, run_train, run_evaluate, tmp_path):
    out = tmp_path / "run"
    drawn = {"learning_curve.png", "hit_ratio.png", "delay_parts.png"} if experiment in DRAWN else set()
    drawn |= {"map.png"} if experiment == "t2drl_cells" else set()  # of several cells
    extra = ["evaluation.final_episodes=2", "evaluation.every_n_frames=2", f"figures={bool(drawn)}"]
    extra += {"oracle": ["cacher.slots=4"], "schrs": ["allocator.generations=2"]}.get(experiment, [])
    frames = 6 if experiment in LEARNERS else 2  # exact allocation of a few slots takes as long as of many
    extra += [f"frames={frames}"]
    summary = run_train(f"experiment={experiment}", *extra, output_dir=out)
    for name in ("config.yaml", "metrics.csv", "evaluations.csv", "evaluation.json", "summary.json", "checkpoints"):
        assert (out / name).exists(), name
    assert {p.name for p in out.glob("figures/*")} == drawn
    metrics = pd.read_csv(out / "metrics.csv")
    assert metrics["frame"].tolist() == list(range(1, frames + 1))
    assert metrics["slots"].tolist() == [12 * frame for frame in range(1, frames + 1)]
    assert metrics["gradient_steps"].iloc[-1] == summary["gradient_steps"]
    delays = metrics[["access_delay", "generation_delay", "backhaul_delay"]].sum(axis=1)
    delays += 2.0 * metrics.get("handover_ratio", 0.0)  # env.handover_delay
    assert (metrics["delay"] <= delays + 1e-3).all()
    stored = json.loads((out / "evaluation.json").read_text())
    again = run_evaluate(checkpoint=out / "checkpoints" / "last", episodes=2)
    name = stored["name"]
    assert again["schemes"][name]["utility"]["mean"] == pytest.approx(
        stored["schemes"][name]["utility"]["mean"], rel=1e-6
    )


@pytest.mark.parametrize("experiment", LEARNERS)
def test_same_seed_same_bits_and_another_seed_others(experiment, run_train, same_run, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run_train(f"experiment={experiment}", f"seed={seed}", output_dir=tmp_path / name)
    same_run(tmp_path / "a", tmp_path / "b")
    first, other = (pd.read_csv(tmp_path / name / "metrics.csv")["utility"] for name in "ac")
    assert not first.equals(other)


@pytest.mark.parametrize("experiment", LEARNERS)
def test_resumed_equals_uninterrupted(experiment, run_train, same_run, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    summary = run_train(f"experiment={experiment}", output_dir=whole)
    assert summary["gradient_steps"] > 0
    shutil.copytree(whole, part)
    for late in part.glob("checkpoints/frame=*6.ckpt"):
        late.unlink()
    run_train(f"experiment={experiment}", "resume=auto", output_dir=part)
    same_run(whole, part)


def test_a_run_can_be_made_longer(run_train, tmp_path):
    run_train(output_dir=tmp_path)
    summary = run_train("frames=8", "resume=auto", output_dir=tmp_path)
    assert summary["frame"] == 8
    assert pd.read_csv(tmp_path / "metrics.csv")["frame"].tolist() == list(range(1, 9))


def test_checkpoints_are_plain_data_and_retention_keeps_newest_and_best(run_train, tmp_path):
    run_train(output_dir=tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "frame=000000004.ckpt", "frame=000000006.ckpt"]
    checkpoint = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["lightning_t2drl"]["config"]["frames"] == 6
    assert any(key.startswith("allocator.actor") for key in checkpoint["state_dict"])


def test_a_damaged_newest_checkpoint_is_skipped_and_named(run_train, same_run, tmp_path, capsys):
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_train(output_dir=whole)
    shutil.copytree(whole, part)
    newest = part / "checkpoints" / "frame=000000006.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    run_train("resume=auto", output_dir=part)
    assert "frame=000000006.ckpt" in capsys.readouterr().out.replace("\n", "")
    same_run(whole, part)


def test_resume_refuses_another_problem_but_not_another_logger(run_train, tmp_path):
    run_train(output_dir=tmp_path)
    with pytest.raises(UserError, match=r"allocator\.actor\.hidden.*env\.users"):
        run_train("frames=8", "resume=auto", "env.users=4", "allocator.actor.hidden=8", output_dir=tmp_path)
    run_train("frames=8", "resume=auto", "evaluation.every_n_frames=0", "logger.tags=[x]", output_dir=tmp_path)


def test_a_run_from_before_a_key_of_world_or_policy_goes_on_with_its_default_alone(run_train, tmp_path):
    run_train(output_dir=tmp_path)
    for path in (tmp_path / "checkpoints").glob("frame=*.ckpt"):
        checkpoint = load_checkpoint(path)
        config = checkpoint["lightning_t2drl"]["config"]
        del config["env"]["active_users_spread"], config["cacher"]["cooperate"]
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    with pytest.raises(UserError, match=r"env\.active_users_spread \(linear then, log now\)$"):
        run_train("frames=8", "resume=auto", "env.active_users_spread=log", output_dir=tmp_path)
    assert run_train("frames=8", "resume=auto", output_dir=tmp_path)["frame"] == 8


def test_env_group_and_load_scenario_agree(run_train, tmp_path):
    run_train("env=drift", "env.num_envs=2", output_dir=tmp_path)
    stored = load_checkpoint(next((tmp_path / "checkpoints").glob("frame=*6.ckpt")))["lightning_t2drl"]["scenario"]
    expected = load_scenario("drift", frames_per_episode=2, slots_per_frame=3).as_dict()
    assert stored == expected


def test_nan_in_a_loss_stops_the_run_and_names_it(run_train, tmp_path, monkeypatch):
    real = ActorCriticAllocator.critic_loss
    calls = iter(range(10_000))
    monkeypatch.setattr(
        ActorCriticAllocator, "critic_loss", lambda *a: real(*a) * (float("nan") if next(calls) == 5 else 1)
    )
    with pytest.raises(NonFiniteError, match=r"frame \d: the critic loss of the allocator is NaN or infinite"):
        run_train(output_dir=tmp_path)


def test_nan_in_a_parameter_stops_the_run_and_names_it(run_train, tmp_path, monkeypatch):
    real = ActorCriticAllocator.update

    def poisoned(self, batch, optimise):
        next(self.critics[0].parameters()).data.fill_(float("inf"))
        return real(self, batch, optimise)

    monkeypatch.setattr(ActorCriticAllocator, "update", poisoned)
    with pytest.raises(NonFiniteError, match=r"parameter \S+ holds NaN or infinity"):
        run_train(output_dir=tmp_path)


def test_output_dir_is_not_overwritten_and_locked(run_train, tmp_path):
    run_train("frames=2", output_dir=tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match="not empty"):
        run_train("frames=2", output_dir=tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_offline_wandb_continues_its_run_and_tensorboard_writes(run_train, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_train("logger=all", "logger.offline=true", "evaluation.final_episodes=2", output_dir=tmp_path)
    first = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert list(Path(tmp_path).glob(f"wandb/offline-run-*-{first}/run-{first}.wandb"))
    assert list((tmp_path / "tensorboard").glob("events.*"))
    run_train("logger=all", "logger.offline=true", "frames=8", "resume=auto", output_dir=tmp_path)
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == first


def test_saved_config_builds_the_same_scenario(run_train, tmp_path):
    run_train("env.users=7", output_dir=tmp_path)
    from lightning_t2drl.registry import typed
    from lightning_t2drl.run.schemas import EnvConfig

    saved = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    assert build_scenario(typed(EnvConfig, saved["env"], "env")).users == 7


def test_a_long_trace_of_ones_own_trains_and_evaluates(run_train, run_evaluate, tmp_path):
    rows = 100_000
    generator = np.random.default_rng(0)
    seconds, models = np.sort(generator.uniform(0, 2e6, rows)).round(3), (generator.zipf(1.5, rows) - 1) % 10
    users = generator.integers(30, size=rows)
    pd.DataFrame({"time": seconds, "model": models, "user": users}).to_csv(tmp_path / "long.csv", index=False)
    run_train("demand=trace", "env.users=30", f"env.demand.file={tmp_path}/long.csv", output_dir=tmp_path / "run")
    found = run_evaluate(checkpoint=tmp_path / "run", episodes=2)
    assert found["hindsight"] and 0 < found["schemes"]["t2drl"]["hit_ratio"]["mean"] < 1
