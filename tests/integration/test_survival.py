"""Killed at any instant and resumed: the run ends bit for bit like one that was never touched."""

import os
import signal
import time

import pytest
import torch

from benchmarks.survival import PHASES, RUN, checkpoint_cost, compare, finish, newest, start, survive
from lightning_t2drl.callbacks import FrameProgress
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.checkpoints import AtomicCheckpointIO, in_order, load_checkpoint
from lightning_t2drl.loop.records import Recorder
from tests.limits import seconds


def run_until(directory, ready, *arguments):
    """Start a run and leave it going as soon as `ready()`."""
    process = start([*RUN, "frames=100000", f"output_dir={directory}", *arguments], directory.parent / "log")
    while process.is_alive() and not ready():
        time.sleep(0.001)
    return process


def test_killed_in_every_phase_and_lengthened_in_between(tmp_path):
    outcome = survive(tmp_path, "set networks", kills=len(PHASES), seed=0)
    assert all(outcome["identical"].values()), outcome
    assert outcome["kills"] == sum(outcome["by_phase"].values()) == len(PHASES)
    assert outcome["damaged_checkpoints"] == 0
    assert not [path for path in (tmp_path / "killed").rglob(".*") if path.name != ".lock"]

    # The comparison that says so would see one bit.
    last = in_order(tmp_path / "killed" / "checkpoints")[-1]
    checkpoint = load_checkpoint(last)
    moments = checkpoint["optimizer_states"][0]["state"][0]["exp_avg"]
    moments.view(torch.int32).view(-1)[0] ^= 1
    AtomicCheckpointIO().save_checkpoint(checkpoint, last)
    same = compare(tmp_path / "whole", tmp_path / "killed")
    assert [part for part, identical in same.items() if not identical] == ["optimizers", "the whole checkpoint"]


def test_killed_before_its_first_checkpoint_it_begins_again(run_train, tmp_path):
    directory = tmp_path / "run"
    process = run_until(directory, lambda: (directory / "metrics.csv").exists(), "checkpoint.every_n_frames=100000")
    process.kill()
    process.join()
    assert newest(directory) == 0 and (directory / "evaluations.csv").read_text().count("\n") >= 2
    run_train("resume=auto", output_dir=directory)
    assert [line.split(",")[0] for line in (directory / "metrics.csv").read_text().split()] == ["frame", *"123456"]
    assert [line.split(",")[0] for line in (directory / "evaluations.csv").read_text().split()] == ["frame", *"0246"]


def test_killed_after_its_last_frame_only_its_end_is_left(run_train, tmp_path):
    arguments = ["evaluation.final_episodes=2", f"output_dir={tmp_path}"]
    run_train(*arguments)
    files = [tmp_path / name for name in ("evaluation.json", "metrics.csv", "evaluations.csv")]
    before = [path.read_bytes() for path in files]
    (tmp_path / "summary.json").unlink()
    files[0].write_text('{"torn": ')
    summary = run_train(*arguments, "resume=auto")
    assert summary["frame"] == newest(tmp_path) == 6
    assert [path.read_bytes() for path in files] == before


def test_a_finished_run_whose_checkpoints_are_gone_is_not_begun_anew(run_train, tmp_path):
    run_train(output_dir=tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(
        UserError, match=r"^resume: .* holds a finished run, but none of its checkpoints; choose another"
    ):
        run_train("resume=auto", "seed=5", output_dir=tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_asked_to_stop_it_ends_at_a_frame_boundary_with_a_checkpoint(number, tmp_path):
    directory = tmp_path / "run"
    process = run_until(directory, lambda: (directory / "metrics.csv").exists(), "checkpoint.every_n_frames=100000")
    os.kill(process.pid, number)
    process.join(seconds(60))
    said = (tmp_path / "log").read_text().replace("\n", " ")
    assert process.exitcode == 128 + number, said
    assert newest(directory) > 0 and f"frame {newest(directory)};" in said and "resume=auto" in said
    assert "Traceback" not in said


def test_asked_to_stop_before_the_first_frame_it_does_not_look_finished(run_train, tmp_path, monkeypatch, capsys):
    def on_train_start(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FrameProgress, "on_train_start", on_train_start)  # called while Lightning's handler is in force
    with pytest.raises(SystemExit) as raised:
        run_train("progress_bar=true", output_dir=tmp_path / "run")
    assert raised.value.code == 128 + signal.SIGTERM
    assert "resume=auto" in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_two_processes_on_one_directory(tmp_path):
    directory = tmp_path / "run"
    first = run_until(directory, lambda: newest(directory) > 0)
    second = start([*RUN, f"output_dir={directory}"], tmp_path / "second")
    second.join(seconds(60))
    first.kill()
    first.join()
    assert second.exitcode == 1
    assert (tmp_path / "second").read_text() == f"error: output_dir: {directory} is in use by another process\n"


def test_a_checkpoint_s_cost_is_reckoned_from_a_run(tmp_path):
    cost = checkpoint_cost(tmp_path, "frames=4", "checkpoint.every_n_frames=2", "env.num_envs=2")
    assert cost["checkpoints"] == 2 and cost["megabytes"] > 0.1 and 0 < cost["share_of_training_percent"] < 100
    with pytest.raises(RuntimeError, match=r"status 1:\nerror: output_dir: .* is not empty"):
        finish(start([*RUN, f"output_dir={tmp_path}"], tmp_path / "log"), tmp_path / "log")


def test_an_evaluation_asked_to_stop_leaves_nothing_half_written(run_evaluate, tmp_path, monkeypatch):
    def watch(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Recorder, "_cells", watch)  # in the middle of writing
    small = ["cacher=random", "allocator=equal", "env.users=3", "episodes=2", "records=true"]
    with pytest.raises(SystemExit) as raised:
        run_evaluate(*small, output_dir=tmp_path / "e")
    assert raised.value.code == 128 + signal.SIGTERM and not (tmp_path / "e").exists()
    assert signal.getsignal(signal.SIGTERM) == before
