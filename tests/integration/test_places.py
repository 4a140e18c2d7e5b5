"""Where a run lives: file systems that know little, and variables that other launchers left behind."""

import errno
import fcntl
import json
import os
import signal
import socket

import pandas as pd
import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.checkpoints import in_order
from lightning_t2drl.run import output_dir, sizes
from lightning_t2drl.run.launch import launched
from lightning_t2drl.run.schemas import TrainerConfig

RULES = ["cacher=random", "allocator=equal", "name=rules", "frames=2"]


def failing(number):
    def operation(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return operation


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP])
def test_without_links_syncs_and_locks_it_goes_on(number, run_train, tmp_path, monkeypatch):
    for owner, name in ((os, "link"), (os, "fsync"), (fcntl, "flock")):
        monkeypatch.setattr(owner, name, failing(number))
    run_train(*RULES, output_dir=tmp_path)
    assert (tmp_path / "checkpoints" / "best.ckpt").exists() and len(in_order(tmp_path / "checkpoints")) == 1
    assert not [path for path in tmp_path.rglob(".*")]


def test_without_locks_an_owner_is_believed_while_it_lives(run_train, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOTSUP))
    owner = {"host": socket.gethostname(), "pid": os.getppid(), "started": output_dir._started(os.getppid())}

    def in_use(expected, **changed):
        (tmp_path / ".lock-owner").write_text(json.dumps(owner | changed))
        with pytest.raises(UserError, match=expected):
            run_train(*RULES, output_dir=tmp_path)

    in_use(rf"in use by process {os.getppid()}$")
    in_use(r"in use by process \d+ on elsewhere; if that is gone, delete .*lock-owner", host="elsewhere")
    (tmp_path / ".lock-owner").write_text(json.dumps(owner | {"started": "1"}))  # another process had that number
    run_train(*RULES, output_dir=tmp_path)
    assert not (tmp_path / ".lock-owner").exists()


def test_a_lock_on_a_deleted_file_is_no_lock(tmp_path, monkeypatch):
    """Between another process's opening and locking the file, its owner may delete it."""
    real, calls = fcntl.flock, iter(range(10))

    def flock(*args):
        if next(calls) == 0:
            (tmp_path / ".lock").unlink()
        real(*args)

    monkeypatch.setattr(fcntl, "flock", flock)
    with output_dir._locked(tmp_path), pytest.raises(UserError, match="in use by another process"):
        output_dir._flock(tmp_path)


STRAY = [
    {"RANK": "1", "WORLD_SIZE": "2"},
    {"LOCAL_RANK": "1"},
    {"SLURM_NTASKS": "2"},
    {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": "7"},
    {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"},
]


@pytest.mark.parametrize("variables", STRAY, ids=" ".join)
def test_stray_rank_variables_are_ignored_and_named(variables, run_train, tmp_path, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run_train(*RULES, output_dir=tmp_path)
    assert (tmp_path / "summary.json").exists()
    said = capsys.readouterr().out
    assert all(
        f"{name}={value}" in said for name, value in variables.items() if "PER_NODE" not in name and "JOB" not in name
    )
    assert {name: os.environ[name] for name in variables} == variables


def believed(trainer, variables, monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with launched(trainer) as (environment, ignored):
            return environment, ignored


def test_launchers_are_believed_where_they_fit_the_config(monkeypatch):
    two = TrainerConfig(devices=2, strategy="ddp")
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    srun = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}  # fmt: skip
    by_hand = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for variables, kind in (
        (torchrun, TorchElasticEnvironment),
        (srun, SLURMEnvironment),
        (by_hand, LightningEnvironment),
    ):
        environment, ignored = believed(two, variables, monkeypatch)
        assert type(environment) is kind and not ignored
        assert not getattr(environment, "auto_requeue", False)
    with pytest.raises(UserError, match="trainer: Slurm's variables do not fit"):
        believed(two, {name: value for name, value in srun.items() if "PER_NODE" not in name}, monkeypatch)
    for variables in (torchrun | {"WORLD_SIZE": "4"}, srun | {"SLURM_STEP_NUM_TASKS": "4"}):
        with pytest.raises(UserError, match=r"trainer\.devices: (torchrun|srun) started 4 process"):
            believed(two, variables, monkeypatch)
    batch = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}  # a batch script that does not call srun
    environment, ignored = believed(two, batch, monkeypatch)
    assert type(environment) is LightningEnvironment and "SLURM_PROCID=0" in ignored


def test_lightnings_own_slurm_checkpoints_are_kept_out(run_train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "x"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another run")
    before = signal.getsignal(signal.SIGUSR1)
    assert run_train(*RULES, output_dir=tmp_path / "run")["frame"] == 2
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loop.slot_capacity=1000000000", r"loop\.slot_capacity: 1000000000 need .*[GT]iB of memory, .* \d+ would fit"),
        ("env.num_envs=1000000", r"env\.num_envs: 1000000 need .* would fit"),
        ("evaluation.final_episodes=1000000", r"evaluation\.final_episodes: 1000000 need .* would fit"),
        ("loop.slot_warmup=41", r"loop\.slot_warmup: 41 is more than loop\.slot_capacity=40 rows; nothing"),
        ("loop.frame_batch_size=31", r"loop\.frame_batch_size: 31 is more than loop\.frame_capacity=30 rows"),
        ("allocator.actor.hidden=100000000", r"allocator"),
    ],
)
def test_what_cannot_be_is_reckoned_before_anything_is_written(override, expected, run_train, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "available", lambda _: 2**30)
    with pytest.raises(UserError, match=expected):
        run_train(override, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_would_fit_fits(run_train, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "available", lambda _: 2**24)
    with pytest.raises(UserError) as raised:
        run_train("loop.slot_capacity=1000000", output_dir=tmp_path)
    fits = int(str(raised.value).split()[-3])
    assert 1000 < fits < 1_000_000
    run_train(f"loop.slot_capacity={fits}", "frames=1", output_dir=tmp_path)
    assert sizes.available("cpu") is not None


def test_a_cacher_that_pays_for_loading_is_told_to_look_ahead(run_train, tmp_path, capsys):
    for discount, told in ((0, True), (0.9, False)):
        keys = ["frames=1", "env.switch_cost_per_gb=0.01", f"cacher.discount={discount}"]
        run_train(*keys, output_dir=tmp_path / str(discount))
        assert ("weighs a load against one frame alone" in capsys.readouterr().out) is told


def test_a_run_too_short_to_learn_says_so(run_train, tmp_path, capsys):
    run_train("frames=1", "loop.slot_warmup=20", output_dir=tmp_path)
    assert "the allocator learns nothing: loop.slot_warmup=20 rows, and this run plays 12" in capsys.readouterr().out
    run_train("frames=4", "allocator.actor_warmup=10", "evaluation.every_n_frames=4", output_dir=tmp_path / "waits")
    assert (
        "the actor learns nothing: allocator.actor_warmup=10 updates, and this run makes 10" in capsys.readouterr().out
    )
    names = pd.read_csv(tmp_path / "waits" / "metrics.csv").dropna(axis=1)
    assert "allocator/critic_loss" in names and "allocator/actor_loss" not in names
    run_train("frames=4", "allocator.actor_warmup=9", output_dir=tmp_path / "moves")
    assert "learns nothing" not in capsys.readouterr().out
    assert "allocator/actor_loss" in pd.read_csv(tmp_path / "moves" / "metrics.csv")
