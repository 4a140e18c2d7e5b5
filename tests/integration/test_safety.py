"""Files that cannot be trusted, and disks that are full."""

import csv
import errno
import os
import pickle

import pytest
import torch

from lightning_t2drl.errors import UserError
from lightning_t2drl.loop import state as run_state
from lightning_t2drl.loop.checkpoints import in_order, load_checkpoint


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


def test_damage_is_found_wherever_it_is(tmp_path, run_train):
    run_train("frames=2", output_dir=tmp_path)
    path = in_order(tmp_path / "checkpoints")[-1]
    good = path.read_bytes()
    for name, content in {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "flipped": good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :],
        "text": b"hello",
    }.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(path)
        assert name
    path.write_bytes(good)
    assert load_checkpoint(path)["lightning_t2drl"]["frame"] == 2


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
