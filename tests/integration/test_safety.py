"""Files that cannot be trusted, and disks that are full."""

import csv
import errno
import os
import pickle

import pytest
import torch

from lightning_t2drl.errors import UserError
from lightning_t2drl.loop import state as run_state
from lightning_t2drl.loop.checkpoints import DamagedCheckpoint, in_order, load_checkpoint
from tests.conftest import ROOT
from tools.bitflips import flip


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, run_evaluate):
    monkeypatch.chdir(tmp_path)
    torch.save({"lightning_t2drl": Evil()}, "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"evil\.ckpt: refused, it holds more than plain data"):
        run_evaluate(checkpoint="evil.ckpt")
    with pytest.raises(UserError, match=r"plain\.ckpt: damaged or not a checkpoint"):
        run_evaluate(checkpoint="plain.ckpt")
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def a_checkpoint(tmp_path, run_train):
    run_train("frames=2", output_dir=tmp_path)
    return in_order(tmp_path / "checkpoints")[-1]


def test_damage_is_found_wherever_it_is(a_checkpoint):
    good = a_checkpoint.read_bytes()
    for content in (good[: len(good) // 2], good[:-1], good + b"x", b"", b"hello"):
        a_checkpoint.write_bytes(content)
        with pytest.raises(DamagedCheckpoint, match="damaged"):
            load_checkpoint(a_checkpoint)
    a_checkpoint.write_bytes(good)
    assert load_checkpoint(a_checkpoint)["lightning_t2drl"]["frame"] == 2


def test_no_flipped_bit_goes_unnoticed(a_checkpoint):
    """A sample of `python -m tools.bitflips`, and every bit of the end, where the checksum is."""
    counts = flip(a_checkpoint, 200, seed=1)
    assert counts["detected"] + counts["harmless"] == 200
    good = a_checkpoint.read_bytes()
    for place in range(1, 64):
        changed = bytearray(good)
        changed[-place] ^= 1 << place % 8
        a_checkpoint.write_bytes(changed)
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(a_checkpoint)


def test_older_checkpoints_without_a_checksum_of_their_own_still_load():
    for path in (ROOT / "tests" / "data" / "version-0.1").glob("*.ckpt"):
        assert load_checkpoint(path)["lightning_t2drl"]["format"] == 1


def test_foreign_and_older_checkpoints_say_what_they_are(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of lightning_t2drl"):
        load_checkpoint(tmp_path / "foreign.ckpt")
    torch.save({run_state.KEY: {"format": 0, "version": "0.0.1"}}, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match=r"format 0 of lightning_t2drl 0\.0\.1.*format 2.*train anew"):
        load_checkpoint(tmp_path / "old.ckpt")


def full_after(calls, real):
    """`real` until the disk is full."""
    left = iter(range(calls))

    def write(*args, **kwargs):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    return write


def test_a_full_disk_ends_the_run_with_one_line_and_keeps_the_previous_checkpoint(tmp_path, run_train, monkeypatch):
    monkeypatch.setattr(torch, "save", full_after(2, torch.save))
    with pytest.raises(
        UserError, match=r"frame=0*6\.ckpt: the checkpoint cannot be written \(No space left on device\)"
    ):
        run_train(output_dir=tmp_path)
    monkeypatch.undo()
    names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert sorted(names) == ["best.ckpt", "frame=000000002.ckpt", "frame=000000004.ckpt"]
    assert load_checkpoint(in_order(tmp_path / "checkpoints")[-1])["lightning_t2drl"]["frame"] == 4


def test_a_disk_too_full_for_a_row_of_metrics_loses_nothing(tmp_path, run_train, same_run, monkeypatch):
    run_train(output_dir=tmp_path / "whole")
    monkeypatch.setattr(csv.DictWriter, "writerow", full_after(7, csv.DictWriter.writerow))
    with pytest.raises(UserError, match=r"part: cannot be written \(No space left on device\); checkpoints are intact"):
        run_train(output_dir=tmp_path / "part")
    monkeypatch.undo()
    run_train("resume=auto", output_dir=tmp_path / "part")
    same_run(tmp_path / "whole", tmp_path / "part")
