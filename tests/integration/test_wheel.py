"""The built package, installed into an environment of its own, works in an empty directory."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("lightning_t2drl", "callbacks", "configs", "pyproject.toml", "README.md", "LICENSE")


def run(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = ROOT / name
        shutil.copytree(path, source / name) if path.is_dir() else shutil.copy(path, source / name)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        target,
        source,
        cwd=target,
    )
    return next(target.glob("*.whl"))


def test_it_holds_one_package_with_all_configs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} <= {"lightning_t2drl"}
    assert {"lightning_t2drl/py.typed", "lightning_t2drl/callbacks/checkpoint.py"} <= set(names)
    shipped = {name.removeprefix("lightning_t2drl/configs/") for name in names if name.endswith(".yaml")}
    assert shipped == {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}


def test_it_trains_and_evaluates_where_there_is_no_clone(wheel, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    own = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip())
    # A path file is not read for path files of its own, so the dependencies are seen and an editable install is not.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(python, "-c", "import lightning_t2drl; print(lightning_t2drl.__file__)", cwd=empty).strip()
    assert Path(where).is_relative_to(own)
    command = tmp_path / "venv" / "bin" / "t2drl"
    run(command, "train", "experiment=quickstart", *TINY, "output_dir=run", cwd=empty)
    words = ["checkpoint=run/checkpoints/last", "episodes=2", "references=[]", "progress_bar=false"]
    shown = run(command, "evaluate", *words, cwd=empty)
    assert "quickstart" in shown
