"""Sweeps by Hydra's launchers: on this machine for real, elsewhere as far as their configs go."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from lightning_t2drl.errors import UserError
from lightning_t2drl.run.commands import run
from lightning_t2drl.run.sweep import launcher_config
from tests.conftest import ROOT
from tests.limits import seconds

TINY = ["experiment=rcars", "frames=2", "env.num_envs=2", "env.users=3", "evaluation.every_n_frames=0",
        "evaluation.final_episodes=2", "progress_bar=false", "figures=false"]  # fmt: skip
PLUGINS = {  # launcher: (its plugin, the extra that installs it)
    "joblib": ("hydra_joblib_launcher", None),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_ray_launcher", "ray"),
}


def installed(launcher):
    return importlib.util.find_spec(f"hydra_plugins.{PLUGINS[launcher][0]}") is not None


def command(directory, *arguments):
    """`train.py` on its way."""
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )


def sweep(directory, launcher, *arguments):
    """A two-job sweep on its way."""
    out = f"output_dir={directory}/{launcher}-${{evaluation.seed}}"
    return command(directory, "-m", *TINY, f"hydra/launcher={launcher}", "evaluation.seed=0,1", out, *arguments)


def test_local_launchers_run_every_job_in_a_process_of_its_own(tmp_path):
    launchers = [launcher for launcher in ("joblib", "submitit_local") if installed(launcher)]
    sweeps = [sweep(tmp_path, launcher) for launcher in launchers]
    here = [
        run("train", [*TINY, f"evaluation.seed={seed}", f"output_dir={tmp_path}/here-{seed}"]).summary
        for seed in range(2)
    ]
    assert here[0]["total_utility"] != here[1]["total_utility"]
    for launcher, process in zip(launchers, sweeps, strict=True):
        log, _ = process.communicate(timeout=seconds(120))
        assert process.returncode == 0, log
        for seed in range(2):
            summary = json.loads((tmp_path / f"{launcher}-{seed}" / "summary.json").read_text())
            assert summary["total_utility"] == here[seed]["total_utility"]
    assert "joblib" in launchers


def test_a_job_that_cannot_be_is_named_and_the_others_run(tmp_path):
    process = sweep(tmp_path, "basic", "env.alpha=2,0.5", f"output_dir={tmp_path}/${{env.alpha}}-${{evaluation.seed}}")
    log, _ = process.communicate(timeout=seconds(120))
    assert process.returncode == 1
    assert log.splitlines()[-1].startswith("error: env.alpha: 2")
    assert "job 1 of 4: evaluation.seed=0 env.alpha=2: failed: env.alpha: 2" in log and "Traceback" not in log
    assert "job 2 of 4: evaluation.seed=0 env.alpha=0.5: utility 0." in log
    assert [(tmp_path / f"{alpha}-{seed}" / "summary.json").exists() for alpha in ("2.0", "0.5") for seed in (0, 1)] == [
        False, False, True, True]  # fmt: skip
    assert not (tmp_path / "cli.log").exists()


@pytest.mark.parametrize("launcher", sorted(PLUGINS))
def test_every_launcher_can_be_chosen_or_says_what_to_install(launcher):
    plugin, extra = PLUGINS[launcher]
    if installed(launcher):
        with launcher_config([f"hydra/launcher={launcher}"]) as (config, _):
            assert config.hydra.launcher._target_.startswith(f"hydra_plugins.{plugin}")
    else:
        line = f"not installed; pip install 'lightning-t2drl[{extra}]'"
        with pytest.raises(UserError, match=re.escape(line)), launcher_config([f"hydra/launcher={launcher}"]):
            pass
