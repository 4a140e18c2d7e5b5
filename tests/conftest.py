"""Settings for every test, and runs of the real entry points in this process."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
from pathlib import Path

import pytest

from lightning_t2drl.run.commands import quiet_libraries, run

# PyTorch is imported where it is needed: pytest-xdist's main process, which only hands out tests, does without.
ROOT = Path(__file__).resolve().parents[1]

TINY = [
    "frames=6",
    "env.num_envs=4",
    "env.frames_per_episode=2",
    "env.slots_per_frame=3",
    "loop.slot_warmup=12",
    "loop.frame_warmup=4",
    "loop.slot_batch_size=8",
    "loop.frame_batch_size=8",
    "loop.slot_capacity=40",
    "loop.frame_capacity=30",
    "loop.log_every_n_frames=1",
    "checkpoint.every_n_frames=2",
    "evaluation.every_n_frames=2",
    "evaluation.episodes=2",
    "evaluation.final_episodes=0",
    "evaluation.diagnosis=false",
    "progress_bar=false",
    "figures=false",
]


@pytest.fixture(autouse=True)
def quiet():
    import torch

    quiet_libraries()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)  # entry points set it for their process, and hypothesis wants denormals


@pytest.fixture
def run_train():
    """`t2drl train` in this process on a tiny world: the summary of run_train("experiment=t2drl", output_dir=...)."""

    def go(*overrides, **keys):
        return run("train", [*TINY, *overrides, *(f"{k}={v}" for k, v in keys.items())]).summary

    return go


@pytest.fixture
def run_evaluate(tmp_path_factory):
    """`t2drl evaluate` in this process, without references: what `evaluation.json` holds."""

    def go(*overrides, **keys):
        quiet = ["progress_bar=false", "references=[]", f"output_dir={tmp_path_factory.mktemp('evaluation')}"]
        return run("evaluate", [*quiet, *overrides, *(f"{k}={v}" for k, v in keys.items())]).results

    return go


@pytest.fixture
def same_run():
    """Assert that two output directories hold the same run: last checkpoint bit for bit, CSV files but for times."""
    import pandas as pd

    from benchmarks.survival import differences
    from lightning_t2drl.loop.checkpoints import in_order, load_checkpoint
    from lightning_t2drl.loop.state import KEY

    def check(first, second, files=("metrics.csv", "evaluations.csv")):
        one, two = (load_checkpoint(in_order(Path(d) / "checkpoints")[-1]) for d in (first, second))
        for checkpoint in (one, two):
            checkpoint[KEY].pop("run_id")
            for key in ("output_dir", "resume"):
                checkpoint[KEY]["config"].pop(key)
        assert differences(one, two) == []
        for file in files:
            a, b = (
                pd.read_csv(Path(d) / file).drop(columns=["run", "slots_per_second"], errors="ignore")
                for d in (first, second)
            )
            pd.testing.assert_frame_equal(a, b, check_exact=True)
            assert a["frame"].is_unique and a["frame"].is_monotonic_increasing

    return check
