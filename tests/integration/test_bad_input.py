"""Bad input: one clear line that names the key or file, exit code 1, nothing written, nothing lost.

`python -m tests.integration.test_bad_input` prints the table in docs/bad-input.md.
"""

import contextlib
import io
import math
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch

from lightning_t2drl.run.cli import main
from lightning_t2drl.system.scenario_config import CONFIG_ROOT

T, E, B, X, C, M = "train", "evaluate", "benchmark", "export", "compare", "calibrate"
R = "trace"
A, V, S, U, D = "explain", "view", "serve", "tune", "diagnose"
OUT = "output_dir=out"

CASES = [
    # what Hydra composes
    (T, "seedd=1", "seedd"),
    (T, "env.user=3", "env.user"),
    (T, "+env.user=3", "env.user"),
    (T, "++cacher.epsilonn=0.1", "cacher.epsilonn"),
    (T, "allocator.actor.hiddn=3", "allocator.actor.hiddn"),
    (T, "experiment=t3drl", "experiment=t3drl"),
    (T, "experiment=t2drl_set", "experiment=t2drl"),
    (T, "experiment=[rcars,oracle]", "experiment"),
    (T, "env=null", "env=null"),
    (T, "~logger", "~logger"),
    (T, "env=3", "env=3"),
    (T, "+env=paper", "+env=paper"),
    (T, "env@world=paper", "env@world=paper"),
    (T, "env=mine.yaml", "mine.yaml"),
    (T, "env=text.ckpt/mine.yaml", "text.ckpt/mine.yaml"),
    (T, "env.storage_capacity=3", "env.storage_capacity_gb"),
    (T, "users=3", "env.users"),
    (T, "~env.users", "~env.users"),
    (T, "~env.user", "env.users"),
    (T, "env.users=1,2", "env.users=1,2"),
    (T, "env.users=???", "env.users"),
    (T, "env.users=${nope}", "nope"),
    (T, "allocator.denoising_steps=5", "allocator.diffusion.steps"),
    (T, "hydra/launcher=joblib", "hydra/launcher"),
    (T, "--config-dir=nowhere", "--config-dir"),
    (T, "hydra.searchpath=[nowhere]", "nowhere"),
    (T, "--resume", "--resume"),
    (T, "name=a/b", "name"),
    (T, "-m seed=0,1 frames=1 output_dir=out", "output_dir"),
    (T, "output_dir=null -m seed=0,1 hydra/launcher=ray", "hydra/launcher=ray"),
    (T, "-m seed=interval(0,1)", "interval"),
    (T, "-m seed=0,1 --cfg", "--cfg"),
    (T, "allocator.prediction=sample", "allocator/diffusion"),
    (T, "env=mars", "env=mars"),
    (T, "cacher=best", "cacher=best"),
    (T, "allocator=none", "allocator=none"),
    (T, "frames=many", "frames"),
    (T, "frames=1.5", "frames"),
    (T, "frames=0", "frames"),
    (T, "seed=-1", "seed"),
    (T, "env.users=abc", "env.users"),
    (T, "frames", "frames"),
    # the world
    (T, "env.users=0", "env.users"),
    (T, "env.users=-3", "env.users"),
    (T, "env.cells=0", "env.cells"),
    (T, "env.num_envs=0", "env.num_envs"),
    (T, "env.slots_per_frame=0", "env.slots_per_frame"),
    (T, "env.frames_per_episode=0", "env.frames_per_episode"),
    (T, "env.model_storage_gb=[]", "env.model_storage_gb"),
    (T, "env.model_storage_gb=[30,40]", "env.storage_capacity_gb"),
    (T, "env.model_storage_gb=[1,0]", "env.model_storage_gb"),
    (T, "env.storage_capacity_gb=nan", "env.storage_capacity_gb"),
    (T, "env.storage_capacity_gb=-1", "env.storage_capacity_gb"),
    (T, "env.zipf_skewness=[]", "env.zipf_skewness"),
    (T, "env.zipf_skewness=[1,2]", "env.popularity_transition"),
    (T, "env.popularity_transition=[[0.8,0.1,0.2],[0.1,0.8,0.1],[0.1,0.1,0.8]]", "env.popularity_transition"),
    (T, "env.popularity_transition=[[1.2,-0.1,-0.1],[0.1,0.8,0.1],[0.1,0.1,0.8]]", "env.popularity_transition"),
    (T, "env.popularity_transition=[1,2]", "env.popularity_transition"),
    (T, "env.popularity_change_every=0", "env.popularity_change_every"),
    (T, "env.popularity_observation=guess", "env.popularity_observation"),
    (T, "env.ranking=random", "env.ranking"),
    (T, "env.input_mb=[10,5]", "env.input_mb"),
    (T, "env.input_mb=[5]", "env.input_mb"),
    (T, "env.bandwidth_mhz=0", "env.bandwidth_mhz"),
    (T, "env.bandwidth_mhz=.inf", "env.bandwidth_mhz"),
    (T, "env.min_distance=300", "env.min_distance"),
    (T, "env.alpha=1.5", "env.alpha"),
    (T, "env.deadline=0", "env.deadline"),
    (T, "env.deadline_penalty=-1", "env.deadline_penalty"),
    (T, "env.backhaul_mbps=0", "env.backhaul_mbps"),
    (T, "env.step_budget=0", "env.step_budget"),
    (T, "env.service.full_steps=50", "env.service.full_steps"),
    (T, "env.service.full_steps=[170,170]", "env.service.full_steps"),
    (T, "env.service.best_metric=110", "env.service.best_metric"),
    (T, "env.service.base_seconds=abc", "env.service.base_seconds"),
    (T, "env.service=3", "env.service"),
    (T, "env.catalogue=nowhere", "env.catalogue"),
    (T, "env.catalogue=nowhere.yaml", "nowhere.yaml"),
    (T, "env.catalogue=3", "env.catalogue"),
    (T, "env.catalogue=offer.yaml", "env.catalogue.sketch.knots"),
    (T, "env=mixed env.model_storage_gb=[1,2]", "env.model_storage_gb"),
    (T, "env=mixed env.service.full_steps=150", "env.service.full_steps"),
    # choices within the world
    (T, "env/channel=sea", "env/channel=sea"),
    (T, "channel=sea", "env/channel=sea"),
    (T, "env.channel=null", "env.channel._target_"),
    (T, "env.channel._target_=lightning_t2drl.cachers.lru.LRUCacher", "env.channel._target_"),
    (T, "channel=umi env.channel.carrier_ghz=300", "env.channel.carrier_ghz"),
    (T, "channel=macro env.channel.carrier_ghz=3", "env.channel.carrier_ghz"),
    (T, "channel=umi env.shadowing_db=8", "env.channel.shadowing=false"),
    (T, "fading=none env.rician_factor_db=3", "env.rician_factor_db"),
    (T, "mobility=static env.mean_speed=3", "env.mean_speed"),
    (T, "channel=table", "env.channel.file"),
    (T, "channel=table env.channel.file=nowhere.csv", "nowhere.csv"),
    (T, "channel=table env.channel.file=used", "used"),
    (T, "channel=table env.channel.file=empty.ckpt", "empty.ckpt"),
    (T, "channel=table env.channel.file=text.ckpt", "text.ckpt"),
    (T, "mobility=random_waypoint env.mobility.speed=[2,1]", "env.mobility.speed"),
    (T, "mobility=trace env.mobility.file=pickle.ckpt", "pickle.ckpt"),
    (T, "env/demand=diary", "env/demand=diary"),
    (T, "demand=trace", "env.demand.file"),
    (T, "demand=trace env.demand.file=nowhere.csv", "nowhere.csv"),
    (T, "demand=trace env.demand.file=used", "used"),
    (T, "demand=trace env.demand.file=empty.ckpt", "empty.ckpt"),
    (T, "demand=trace env.demand.file=pickle.ckpt", "pickle.ckpt"),
    (T, "demand=trace env.demand.file=requests.csv", "requests.csv, row 2"),
    (T, "demand=trace env.demand.file=requests.csv env.demand.columns={time:when}", "when"),
    (T, "env.activity=0", "env.activity"),
    # policies, loop, trainer
    (T, "cacher.epsilon=3", "cacher.epsilon"),
    (T, "cacher.infeasible=mask", "cacher.infeasible"),
    (T, "cacher._target_=my.Cacher", "cacher._target_"),
    (T, "cacher._target_=3", "cacher._target_"),
    (T, "cacher._target_=[a,b]", "cacher._target_"),
    (T, "cacher=_q_learning", "cacher._target_"),
    (T, "cacher._target_=lightning_t2drl.loop.replay.PackedReplay", "cacher._target_"),
    (T, "cacher=random cacher._target_=lightning_t2drl.allocators.equal.EqualAllocator", "cacher._target_"),
    (T, "cacher.network.activation=step", "activation"),
    (T, "allocator.diffusion.steps=0", "allocator.diffusion.steps"),
    (T, "allocator/diffusion=noise", "allocator/diffusion=noise"),
    (T, "allocator.diffusion.schedule=cosine", "allocator.diffusion.schedule"),
    (T, "allocator/diffusion=epsilon allocator.diffusion.beta_max=2", "allocator.diffusion.beta"),
    (T, "allocator.actor.hidden=-3", "allocator.actor.hidden"),
    (T, "allocator.discount=1.1", "allocator.discount"),
    (T, "allocator.objective=best", "allocator.objective"),
    (T, "allocator=ddpg allocator.objective=q_weighted", "allocator.objective"),
    (T, "allocator=sac allocator.discount=0.9 allocator.target_noise=0.2", "allocator.target_noise"),
    (T, "allocator=consistency allocator.diffusion.steps=8", "allocator.diffusion.steps"),
    (T, "allocator.diffusion.sampler=euler", "allocator.diffusion.sampler"),
    (
        T,
        "allocator/actor=mlp allocator/critic=mlp",
        "allocator.head.square_root_law",
    ),
    (T, "allocator/head=argmax", "allocator/head=argmax"),
    (T, "allocator.actor.activation=step", "activation"),
    (T, "loop.slot_batch_size=0", "loop.slot_batch_size"),
    (T, "loop.gradient_clip=-1", "loop.gradient_clip"),
    (T, "trainer.precision=8-bit", "trainer.precision"),
    (T, "trainer.accelerator=tpu", "trainer.accelerator"),
    (T, "logger.tags=mine", "logger.tags"),
    (T, "trainer.devices=0", "trainer.devices"),
    (T, "checkpoint.every_n_frames=0", "checkpoint.every_n_frames"),
    (T, "evaluation.episodes=0", "evaluation.episodes"),
    # files
    (T, "resume=missing.ckpt", "missing.ckpt"),
    (T, "resume=foreign.ckpt", "foreign.ckpt"),
    (T, "resume=text.ckpt", "text.ckpt"),
    (T, "resume=empty.ckpt", "empty.ckpt"),
    (T, "resume=truncated.ckpt", "truncated.ckpt"),
    (T, "resume=harmful.ckpt", "harmful.ckpt"),
    (T, "resume=used", "used"),
    (T, "output_dir=null resume=auto", "output_dir"),
    (T, "output_dir=used resume=auto", "used"),
    (T, "output_dir=used", "output_dir"),
    (T, "output_dir=text.ckpt/run", "output_dir"),
    # evaluate.py
    (E, "checkpoint=missing.ckpt", "missing.ckpt"),
    (E, "checkpoint=text.ckpt", "text.ckpt"),
    (E, "checkpoint=empty.ckpt", "empty.ckpt"),
    (E, "checkpoint=truncated.ckpt", "truncated.ckpt"),
    (E, "checkpoint=foreign.ckpt", "foreign.ckpt"),
    (E, "checkpoint=pickle.ckpt", "pickle.ckpt"),
    (E, "checkpoint=harmful.ckpt", "harmful.ckpt"),
    (E, "checkpoint=used", "used"),
    (E, "checkpoint=used/checkpoints/last", "used/checkpoints"),
    (E, "cacher=nope", "cacher=nope"),
    (E, "allocator=ddqn", "allocator=ddqn"),
    (E, "experiment=t2drl", "experiment"),
    (E, "allocator._target_=lightning_t2drl.cachers.random.RandomCacher", "allocator._target_"),
    (E, "env=mars", "env=mars"),
    (E, "env.users=0", "env.users"),
    (E, "seed=-1", "seed"),
    (E, "episodes=0", "episodes"),
    (E, "env=paper env.nope=1", "env.nope"),
    (E, "cacher=random cacher.nope=3", "cacher.nope"),
    (E, "references=[best]", "references"),
    (E, "episodes=2 output=result.json", "output_dir"),
    (E, "episodes=2 output_dir=used", "output_dir"),
    (E, "episodes=2 output_dir=text.ckpt", "output_dir"),
    (E, "episodes=2 output_dir=text.ckpt/a", "output_dir"),
    (X, "output_dir=policy", "checkpoint"),
    (X, "checkpoint=missing.ckpt", "missing.ckpt"),
    (R, "output=requests.csv", "requests.csv"),
    (R, "output=trace.txt", "trace.txt"),
    (R, "slots=0", "slots"),
    # benchmark.py
    (B, "suite=everything", "suite=everything"),
    (B, "suite.name=[a]", "suite.name"),
    (B, "suite.values=[few,many]", "suite.values"),
    (B, "suite.values=10", "suite.values"),
    (B, "suite.seeds_small=0", "suite.seeds_small"),
    (B, "~suite.values", "~suite.values"),
    (B, "suite.episodes_small=1.5", "suite.episodes_small"),
    (B, "suite.reference=worst", "suite.reference"),
    (B, "suite.learners=[t2drl]", "suite.learners"),
    (B, "suite.fixed.rcars=random", "suite.fixed.rcars"),
    (B, "suite.fixed.rcars=[random]", "suite.fixed.rcars"),
    (B, "suite.fixed.mine=[random,equal]", "suite.fixed.mine: there is none yet; +suite.fixed.mine=... adds it"),
    (B, "+suite.budget=1", "suite.budget"),
    (B, "budget=huge", "budget"),
    (B, "work_dir=jobs", "output_dir"),
    (B, "workers=0", "workers"),
    # compare
    (C, "output_dir=out", "runs"),
    (C, "outputdir=x", "output_dir"),
    (C, "used", "used"),
    (C, "ours=text.ckpt", "text.ckpt"),
    (C, "used x=hours", "x"),
    # calibrate
    (M, "service=music", "service"),
    (M, "service=missing.py:curve", "missing.py"),
    (M, "service=text.ckpt:curve", "service"),
    (M, "service=[text]", "service"),
    (M, "service=text metric=beauty", "metric"),
    (M, "service=text chain=cut", "chain"),
    (M, "better=lower", "better"),
    (M, "service=text steps=[1,2,4]", "steps"),
    (M, "service=text steps=[1,2,4,8,100]", "steps"),
    (M, "service=text batches=[]", "batches"),
    (M, "service=text samples=1", "samples"),
    (M, "service=text iterations=0", "iterations"),
    (M, "service=text full_seconds=0", "full_seconds"),
    (M, "size=huge", "size"),
    (M, "chain=long", "chain"),
    (M, "clock=sun", "clock"),
    (M, "service=text output_dir=used", "output_dir"),
    (M, "env=paper", "env"),
    # explain
    (A, "output_dir=out", "slot"),
    (A, "missing.json", "missing.json"),
    (A, "text.ckpt", "text.ckpt"),
    (A, "slot.json checkpoint=missing.ckpt", "missing.ckpt"),
    # diagnose
    (D, "worlds=16", "checkpoint"),
    (D, "worlds=0", "worlds"),
    (D, "nowhere", "nowhere"),
    (D, "text.ckpt", "text.ckpt"),
    # view
    (V, "used", "used"),
    (V, "episodes=0", "episodes"),
    (V, "checkpoint=text.ckpt", "text.ckpt"),
    (V, "used env.users=3", "env.users"),
    # tune
    (U, "space=nope", "space=nope"),
    (U, "space.keys=[]", "space.keys"),
    (U, "trials=0", "trials"),
    (U, "space.keys=[{key:cacher.nope,low:1,high:2}]", "cacher.nope"),
    (U, "experiment=t3drl", "experiment=t3drl"),
    # serve
    (S, "port=0", "policy"),
    (S, "policy=used", "used"),
    (S, "policy=used ports=1", "ports"),
    (S, "policy=used port=99999", "port"),
]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def unsuitable_files():
    """Files that an argument may name, in the current directory."""
    torch.save({"weights": torch.zeros(100)}, "foreign.ckpt")
    torch.save({"weights": Harmful()}, "harmful.ckpt")
    Path("truncated.ckpt").write_bytes(Path("foreign.ckpt").read_bytes()[:500])
    Path("pickle.ckpt").write_bytes(pickle.dumps({"weights": [0.0]}))
    Path("empty.ckpt").touch()
    Path("text.ckpt").write_text("hello")
    Path("requests.csv").write_text("time,model\n60,1\n0,1\n")
    Path("offer.yaml").write_text(
        "models: [{name: sketch, knots: [[1, 20], [5, 30]], seconds_per_step: 0.1, storage_gb: 1}]"
    )
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")


def complain(script, argument, directory, monkeypatch):
    """The line an entry point prints for a bad argument, in a directory with a few unsuitable files."""
    monkeypatch.chdir(directory)
    unsuitable_files()
    before = {path: path.is_file() and path.read_bytes() for path in directory.rglob("*")}
    own_output = argument.startswith("output_dir=") or script != T
    with pytest.raises(SystemExit) as stop:
        main([script, *argument.split(" "), *([] if own_output else [OUT])])
    assert stop.value.code == 1
    assert {path: path.is_file() and path.read_bytes() for path in directory.rglob("*")} == before


PUBLISHED = CONFIG_ROOT.parent / "docs" / "bad-input.md"


def row(script, argument, said):
    """The case and what it says, as Markdown."""
    line = said.strip().removeprefix("error: ").replace("|", "\\|")
    return f"| `t2drl {script} {argument}` | {line} |"


@pytest.mark.parametrize(("script", "argument", "named"), CASES)
def test_one_line_names_it_and_nothing_is_written(script, argument, named, tmp_path, monkeypatch, capsys):
    complain(script, argument, tmp_path, monkeypatch)
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert named in captured.err
    assert "Traceback" not in captured.err + captured.out
    assert row(script, argument, captured.err) in PUBLISHED.read_text().splitlines()


def test_the_published_table_has_these_cases_and_no_others():
    published = [line.split(" | ")[0] for line in PUBLISHED.read_text().splitlines() if line.startswith("| `")]
    assert published == [f"| `t2drl {script} {argument}`" for script, argument, _ in CASES]


AT_THE_EDGE = [
    ("env.users=1",),
    ("env.model_storage_gb=[3]",),
    ("env.slots_per_frame=1",),
    ("env.zipf_skewness=[1]", "env.popularity_transition=[[1]]"),
    ("env.users=1", "env.model_storage_gb=[3]", "env.zipf_skewness=[0]", "env.popularity_transition=[[1]]"),
    ("env.bandwidth_mhz=1e12", "env.backhaul_mbps=1e12", "env.step_budget=1e12", "env.deadline=1e9"),
    ("env.bandwidth_mhz=1e-3", "env.backhaul_mbps=1e-3", "env.step_budget=1e-3", "env.deadline=1e-3"),
    ("env.storage_capacity_gb=1e12", "env.deadline_penalty=1e6", "env.switch_cost_per_gb=1e6"),
]


@pytest.mark.parametrize("overrides", AT_THE_EDGE, ids=" ".join)
def test_what_is_small_or_large_but_possible_trains(overrides, run_train, tmp_path):
    summary = run_train("experiment=t2drl", *overrides, "evaluation.final_episodes=2", output_dir=tmp_path)
    assert summary["gradient_steps"] > 0
    assert math.isfinite(summary["total_utility"]) and 0 <= summary["hit_ratio"] <= 1


def table():
    """All cases' rows."""
    yield "| command | what it says (exit status 1) |"
    yield "| --- | --- |"
    for script, argument, _ in CASES:
        error = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as directory,
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stderr(error),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            complain(script, argument, Path(directory).resolve(), patch)
        yield row(script, argument, error.getvalue())


if __name__ == "__main__":
    print("# Bad input\n\nWhat a mistake gets: one line, exit status 1, nothing written. Made by")
    print("`python -m tests.integration.test_bad_input > docs/bad-input.md`, and compared with the code by a test.\n")
    print("\n".join(table()))
