"""One directory, one run, one timeline: branches, cuts, damage, longer runs, and kills in between."""

import csv
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.survival import differences
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop import checkpoints
from lightning_t2drl.loop.checkpoints import AtomicCheckpointIO, in_order, load_checkpoint
from lightning_t2drl.loop.state import KEY
from lightning_t2drl.registry import typed
from lightning_t2drl.run import finish
from lightning_t2drl.run.resume import choose, prepare
from lightning_t2drl.run.schemas import TrainConfig
from tests.conftest import ROOT

RULES = ["cacher=random", "allocator=equal", "name=rules"]  # nothing to learn: quick, and the timeline is the same


class Killed(BaseException):
    """What ends a process, in this one."""


@pytest.fixture
def play(run_train):
    def go(directory, *overrides):
        return run_train(*RULES, "checkpoint.keep=3", *overrides, output_dir=directory)

    return go


def frames(directory):
    return [checkpoints.frame_of(path) for path in in_order(directory / "checkpoints")]


def checkpoint(directory, frame):
    return directory / "checkpoints" / f"frame={frame:09d}.ckpt"


def content(directory):
    """Everything in a directory, to see whether anything was touched."""
    return {path: path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


def identity(directory):
    return json.loads((directory / "run.json").read_text())


def best(directory):
    return load_checkpoint(directory / "checkpoints" / "best.ckpt")[KEY]["frame"]


def test_another_runs_checkpoint_begins_a_branch_in_a_directory_of_its_own(play, same_run, tmp_path, capsys):
    play(tmp_path / "a")
    before = content(tmp_path / "a")
    play(tmp_path / "b", f"resume={checkpoint(tmp_path / 'a', 4)}")
    assert content(tmp_path / "a") == before
    mother, branch = identity(tmp_path / "a"), identity(tmp_path / "b")
    assert f"branch of run {mother['run_id']} begins" in capsys.readouterr().out
    assert branch["parent"]["run_id"] == mother["run_id"] != branch["run_id"]
    assert branch["parent"]["frame"] == 4
    same_run(tmp_path / "a", tmp_path / "b")
    assert load_checkpoint(checkpoint(tmp_path / "b", 6))[KEY]["run_id"] == branch["run_id"]
    assert best(tmp_path / "a") == best(tmp_path / "b")
    rows = pd.read_csv(tmp_path / "b" / "metrics.csv", dtype=str)
    assert rows["run"].tolist() == [mother["run_id"]] * 4 + [branch["run_id"]] * 2


def test_a_branch_never_goes_where_something_else_is(play, tmp_path):
    play(tmp_path / "a")
    play(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    before = content(tmp_path)
    for other in "bc":
        with pytest.raises(UserError, match="a directory of its own"):
            play(tmp_path / other, f"resume={checkpoint(tmp_path / 'a', 4)}", "frames=8")
    assert content(tmp_path) == before


def test_an_older_checkpoint_of_the_same_run_cuts_the_rest_away(play, same_run, tmp_path, capsys):
    play(tmp_path / "whole", "frames=4", "schedule_frames=6")
    play(tmp_path / "cut")
    play(tmp_path / "cut", "frames=4", f"resume={checkpoint(tmp_path / 'cut', 2)}")
    assert "cut away: what" in (said := capsys.readouterr().out) and "after frame 2, up to frame 6" in said
    assert frames(tmp_path / "cut") == [2, 4] and identity(tmp_path / "cut")["cut"] is None
    assert pd.read_csv(tmp_path / "cut" / "metrics.csv")["frame"].tolist() == [1, 2, 3, 4]
    same_run(tmp_path / "whole", tmp_path / "cut")
    assert best(tmp_path / "cut") == best(tmp_path / "whole")


class Operations:
    """Kills at the n-th change of the file system."""

    def __init__(self, monkeypatch, number):
        self.left = number
        for owner, name in ((os, "replace"), (os, "link"), (Path, "unlink"), (Path, "replace"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, real):
        def operation(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*args, **kwargs)

        return operation


@pytest.mark.parametrize("kind", ["branch", "cut", "best", "damaged"])
def test_killed_at_any_step_of_a_resume_the_next_one_comes_to_the_same(kind, play, tmp_path, monkeypatch):
    play(tmp_path / "a", "evaluation.every_n_frames=0", "checkpoint.keep=9")
    if kind == "best":
        os.link(checkpoint(tmp_path / "a", 2), tmp_path / "a" / "checkpoints" / "best.ckpt")
        checkpoint(tmp_path / "a", 2).unlink()
    if kind == "damaged":
        checkpoint(tmp_path / "a", 6).write_bytes(b"nothing")
    stored = load_checkpoint(checkpoint(tmp_path / "a", 4))[KEY]["config"]
    for number in range(30):
        place = tmp_path / str(number)
        here = Path(shutil.copytree(tmp_path / "a", place)) if kind != "branch" else place
        named = {"branch": checkpoint(tmp_path / "a", 2), "cut": checkpoint(here, 2),
                 "best": here / "checkpoints" / "best.ckpt", "damaged": "auto"}[kind]  # fmt: skip
        expected = 4 if kind == "damaged" else 2
        here.mkdir(parents=True, exist_ok=True)

        def begin(resumed, here=here):
            config = typed(TrainConfig, stored | {"resume": str(resumed)}, "")
            start = choose(config, dict(stored), here, lambda _: None)
            prepare(start, here)
            return start

        try:
            with monkeypatch.context() as patch:
                Operations(patch, number)
                begin(named)
                complete = True
        except Killed:
            complete = False
        begun = identity(here) if (here / "run.json").exists() else None
        if begun is not None and (begun["cut"] is not None or kind in ("branch", "damaged") or complete):
            assert begin("auto").frame == expected, number  # what is marked is decided
        assert begin(named).frame == expected, number
        assert max(frames(here)) == expected and identity(here)["cut"] is None
        assert not list(here.rglob(".*.tmp-*"))
        if complete:
            return
    raise AssertionError("30 operations were not enough")


def test_damaged_newer_checkpoints_are_set_aside_and_good_ones_kept(play, same_run, tmp_path, capsys):
    play(tmp_path / "whole", "frames=8")
    play(tmp_path / "part")
    for frame in (4, 6):
        path = checkpoint(tmp_path / "part", frame)
        path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "part" / "checkpoints" / "frame=000000009 (copy).ckpt").touch()
    play(tmp_path / "part", "frames=8", "resume=auto", "schedule_frames=6")
    said = capsys.readouterr().out
    assert said.count("set aside: ") == 2 and "frame=000000002.ckpt at frame 2" in said
    names = {path.name for path in (tmp_path / "part" / "checkpoints").iterdir()}
    assert {"frame=000000004.ckpt.damaged", "frame=000000006.ckpt.damaged", "frame=000000009 (copy).ckpt"} <= names
    assert frames(tmp_path / "part") == [4, 6, 8]
    assert differences_but_config(tmp_path / "whole", tmp_path / "part") == []


def differences_but_config(one, two):
    contents = [load_checkpoint(in_order(directory / "checkpoints")[-1]) for directory in (one, two)]
    for stored in contents:
        stored[KEY].pop("config")
        stored[KEY].pop("run_id")
    return differences(*contents)


def test_lengthened_and_killed_at_its_end_it_ends_as_if_untouched(play, tmp_path, monkeypatch):
    ending = ["evaluation.final_episodes=2"]
    play(tmp_path / "begun", *ending, "frames=4")
    shutil.copytree(tmp_path / "begun", tmp_path / "whole")
    play(tmp_path / "whole", *ending, "resume=auto")
    for instant in ("compare", "evaluation.json", "draw_run", "summary.json"):
        killed = Path(shutil.copytree(tmp_path / "begun", tmp_path / instant))
        with monkeypatch.context() as patch:

            def kill(*args, **kwargs):
                raise Killed

            def write(path, text, instant=instant, kill=kill, real=finish.write_atomically):
                return kill() if path.name == instant else real(path, text)

            patch.setattr(*(finish, instant, kill) if "." not in instant else (finish, "write_atomically", write))
            patch.setattr("lightning_t2drl.run.train.write_atomically", write)
            with pytest.raises(Killed):
                play(killed, *ending, "resume=auto", f"figures={str(instant == 'draw_run').lower()}")
        assert not (killed / "summary.json").exists()
        play(killed, *ending, "resume=auto")
        assert differences_but_config(tmp_path / "whole", killed) == []
        assert (killed / "evaluation.json").read_bytes() == (tmp_path / "whole" / "evaluation.json").read_bytes()
        assert not (killed / "figures").exists()


def test_what_is_finished_stays_unless_something_else_is_asked_for(play, tmp_path):
    summary = play(tmp_path, "evaluation.final_episodes=2")
    before = content(tmp_path)
    assert play(tmp_path, "evaluation.final_episodes=2", "resume=auto") == summary
    assert content(tmp_path) == before
    play(tmp_path, "evaluation.final_episodes=3", "resume=auto")
    assert json.loads((tmp_path / "evaluation.json").read_text())["episodes"] == 3
    with pytest.raises(UserError, match=r"frame 6 already, past frames=4"):
        play(tmp_path, "evaluation.final_episodes=2", "resume=auto", "frames=4")


def test_a_run_in_parts_learns_what_it_learns_in_one(run_train, tmp_path, capsys):
    """schedule_frames says where schedules end, however long each part is."""
    learner = ["experiment=quickstart", "evaluation.every_n_frames=0", "checkpoint.every_n_frames=3"]
    run_train(*learner, "frames=6", output_dir=tmp_path / "whole")
    run_train(*learner, "frames=3", "schedule_frames=6", output_dir=tmp_path / "parts")
    run_train(*learner, "frames=6", "resume=auto", output_dir=tmp_path / "parts")
    assert differences_but_config(tmp_path / "whole", tmp_path / "parts") == []
    middle = [load_checkpoint(checkpoint(tmp_path / name, 3)) for name in ("whole", "parts")]
    assert {path for path in differences(*middle) if KEY not in path} == set()
    with pytest.raises(UserError, match=r"schedule_frames \(6 then, 9 now\)"):
        run_train(*learner, "frames=9", "schedule_frames=9", "resume=auto", output_dir=tmp_path / "parts")
    capsys.readouterr()
    run_train(*learner, "frames=7", "resume=auto", output_dir=tmp_path / "parts")
    assert "after frame 6 (schedule_frames) schedules stay at their end values" in capsys.readouterr().out


def test_every_evaluated_frame_can_become_the_best(play, tmp_path):
    arguments = ["checkpoint.every_n_frames=100", "evaluation.every_n_frames=1"]
    play(tmp_path, *arguments)
    with open(tmp_path / "evaluations.csv") as source:
        utilities = {int(row["frame"]): float(row["utility"]) for row in csv.DictReader(source)}
    del utilities[0]  # nothing was played yet
    assert best(tmp_path) == max(utilities, key=lambda frame: (utilities[frame], -frame))
    # Its second name is lost, or of another frame: what is there of it is found again, or the score goes with it.
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    kept = best_of_state(tmp_path)
    play(tmp_path, *arguments, "resume=auto", "evaluation.final_episodes=2")
    assert (tmp_path / "checkpoints" / "best.ckpt").exists() == (kept in frames(tmp_path))


def test_a_score_on_other_worlds_is_not_compared(play, tmp_path):
    play(tmp_path)
    path = in_order(tmp_path / "checkpoints")[-1]
    content = load_checkpoint(path)
    content["callbacks"]["FrameCheckpoint"]["best_utility"] = 1.0  # which nothing can beat
    AtomicCheckpointIO().save_checkpoint(content, path)
    before = best_of_state(tmp_path)
    play(tmp_path, "frames=8", "resume=auto")
    assert best_of_state(tmp_path) == before < 8
    play(tmp_path, "frames=10", "resume=auto", "evaluation.episodes=3")
    assert best_of_state(tmp_path) == best(tmp_path) == 10


def best_of_state(directory):
    return load_checkpoint(in_order(directory / "checkpoints")[-1])["callbacks"]["FrameCheckpoint"]["best_frame"]


def test_checkpoints_that_cannot_be_used_say_so_in_one_line(play, tmp_path):
    play(tmp_path, "evaluation.every_n_frames=0")
    path = checkpoint(tmp_path, 6)
    good = load_checkpoint(path)

    def refused(change, expected):
        changed = torch.load(path, weights_only=True)
        change(changed)
        AtomicCheckpointIO().save_checkpoint(changed, tmp_path / "changed.ckpt")
        with pytest.raises(UserError, match=expected) as raised:
            load_checkpoint(tmp_path / "changed.ckpt")
        assert "\n" not in str(raised.value)

    for part in ("config", "ranks", "frame"):
        refused(lambda c, part=part: c[KEY].pop(part), f"not a whole checkpoint .*'{part}'")
    refused(lambda c: c.pop("state_dict"), "'state_dict'")
    refused(lambda c: c["state_dict"].update(weight=torch.tensor([1.0, float("nan")])), "parameter weight holds NaN")
    refused(lambda c: c.update({KEY: [1]}), "not a checkpoint of lightning_t2drl")
    torch.save(good, path)  # by hand, without a checksum
    with pytest.raises(UserError, match="checksum is missing"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("file", "text"),
    [("metrics.csv", b"\xff\xfe,1"), ("evaluations.csv", b"a,b\n1,2\n"), ("wandb.json", b'{"id'), ("run.json", b"{}")],
)
def test_files_that_cannot_be_read_are_named_before_anything_changes(file, text, play, tmp_path):
    play(tmp_path, "frames=4")
    (tmp_path / file).write_bytes(text)
    before = content(tmp_path)
    with pytest.raises(UserError, match=f"{file}: (not the table of a run|damaged)"):
        play(tmp_path, "resume=auto")
    assert content(tmp_path) == before
    (tmp_path / file).unlink()  # the way out that the line names
    assert play(tmp_path, "resume=auto")["frame"] == 6


def test_a_checkpoint_of_another_run_is_no_part_of_this_one(play, tmp_path):
    play(tmp_path / "a", "frames=4")
    play(tmp_path / "b")
    os.link(checkpoint(tmp_path / "b", 6), checkpoint(tmp_path / "a", 6))
    with pytest.raises(UserError, match="belongs to another run"):
        play(tmp_path / "a", "resume=auto", "frames=8")


def test_a_checkpoint_of_a_policy_alone_is_no_run(play, tmp_path):
    play(tmp_path / "a", "frames=2")
    content = load_checkpoint(checkpoint(tmp_path / "a", 2))
    del content["optimizer_states"]
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "policy.ckpt")
    with pytest.raises(UserError, match="holds a policy, not a run: it has no 'optimizer_states'"):
        play(tmp_path / "b", f"resume={tmp_path / 'policy.ckpt'}")


def test_a_run_of_an_older_version_is_evaluated_but_not_gone_on_with(play, tmp_path):
    old = ROOT / "tests" / "data" / "version-0.1" / "mlps.ckpt"
    with pytest.raises(UserError, match=r"written by lightning_t2drl 0\.1\S*, whose runs only that version can go on"):
        play(tmp_path / "run", f"resume={old}")
    assert not (tmp_path / "run").exists()
