"""Sweeps by Hydra's launchers: on this machine for real, elsewhere as far as their configs go."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from lightning_t2drl.errors import UserError
from lightning_t2drl.run.cli import main
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


def words(directory, launcher, seeds):
    """Of a sweep with a job for every seed."""
    out = f"output_dir={directory}/{launcher}-${{evaluation.seed}}"
    return ["-m", *TINY, f"hydra/launcher={launcher}", f"evaluation.seed={seeds}", out]


def sweep(directory, *arguments):
    """`train.py` on its way."""
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words(directory, *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )


def test_local_launchers_run_every_job_in_a_process_of_its_own(tmp_path):
    """Two by joblib, whose processes may run several jobs; one by submitit, which starts each by itself."""
    launchers = {name: seeds for name, seeds in {"joblib": (0, 1), "submitit_local": (1,)}.items() if installed(name)}
    sweeps = [sweep(tmp_path, launcher, ",".join(map(str, seeds))) for launcher, seeds in launchers.items()]
    here = [
        run("train", [*TINY, f"evaluation.seed={seed}", f"output_dir={tmp_path}/here-{seed}"]).summary
        for seed in range(2)
    ]
    assert here[0]["total_utility"] != here[1]["total_utility"]
    for launcher, process in zip(launchers, sweeps, strict=True):
        log, _ = process.communicate(timeout=seconds(120))
        assert process.returncode == 0, log
        for seed in launchers[launcher]:
            summary = json.loads((tmp_path / f"{launcher}-{seed}" / "summary.json").read_text())
            assert summary["total_utility"] == here[seed]["total_utility"]
    assert "joblib" in launchers


def test_a_job_that_cannot_be_is_named_and_the_others_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = f"output_dir={tmp_path}/${{env.alpha}}-${{evaluation.seed}}"
    with pytest.raises(SystemExit) as stop:
        main(["train", *words(tmp_path, "basic", "0,1"), "env.alpha=2,0.5", out])
    log, error = capsys.readouterr()
    assert stop.value.code == 1 and error.startswith("error: env.alpha: 2") and error.count("\n") == 1
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
