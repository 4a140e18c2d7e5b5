"""Killed at any instant and resumed: the run ends bit for bit like one that was never touched."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    "experiment=quickstart", "seed=5", "frames=40", "env.num_envs=4", "env.frames_per_episode=2", "env.slots_per_frame=3",
    "loop.slot_warmup=12", "loop.frame_warmup=4", "loop.slot_batch_size=8", "loop.frame_batch_size=8",
    "loop.slot_capacity=200", "loop.log_every_n_frames=1", "checkpoint.every_n_frames=1", "evaluation.every_n_frames=4",
    "evaluation.episodes=2", "evaluation.final_episodes=0", "progress_bar=false", "figures=false",
]  # fmt: skip


def start(directory, *more, resume=True):
    command = [sys.executable, str(ROOT / "train.py"), *RUN, f"output_dir={directory}", *more]
    if resume and (directory / "checkpoints").exists() and list((directory / "checkpoints").glob("frame=*.ckpt")):
        command.append("resume=auto")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=directory.parent, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def newest(directory):
    return max((int(p.stem.partition("=")[2]) for p in directory.glob("checkpoints/frame=*.ckpt")), default=0)


def kill_when(process, ready, timeout=90.0):
    """SIGKILL a run as soon as `ready()`; whether it was still running."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.0005)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def clear_untracked_start(directory):
    """A run killed before its first checkpoint has nothing to resume: start anew in an empty directory."""
    if newest(directory) == 0:
        for path in sorted(directory.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()


def finish(directory):
    process = start(directory)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err + out


def test_sigkill_at_random_instants_and_during_saves(run_train, same_run, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish_whole = start(whole, resume=False)
    killed.mkdir()
    rng = random.Random(0)
    kills = in_save = 0
    while kills < 6:
        before = newest(killed)
        process = start(killed)
        if kills % 3 == 2:  # in the middle of a save: its temporary file is there
            hit = kill_when(process, lambda b=before: newest(killed) > b and any(killed.glob("checkpoints/.*.tmp-*")))
            in_save += hit
        else:
            wait = before + rng.randint(1, 4)
            hit = kill_when(process, lambda w=wait: newest(killed) >= w)
        if not hit:
            break
        kills += 1
        clear_untracked_start(killed)
    finish(killed) if newest(killed) < 40 else None
    _, errors = finish_whole.communicate(timeout=120)
    assert finish_whole.returncode == 0, errors
    assert kills >= 5 and in_save >= 1, (kills, in_save)
    same_run(whole, killed)
    assert not list(killed.glob("checkpoints/.*.tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_ends_at_a_frame_boundary_with_a_checkpoint(number, tmp_path):
    directory = tmp_path / "run"
    process = start(directory, "checkpoint.every_n_frames=1000", "frames=100000")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (directory / "metrics.csv").exists():
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert newest(directory) > 0 and "resume=auto" in out
    assert f"frame {newest(directory)};" in out.replace("\n", " ")
    assert "Traceback" not in err


def test_two_processes_on_one_directory(tmp_path):
    directory = tmp_path / "run"
    first = start(directory, "frames=100000")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and newest(directory) == 0:
        time.sleep(0.01)
    second = start(directory, "frames=100000")
    _, err = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert err.strip() == f"error: output_dir: {directory} is in use by another process"
