"""Bad input: one clear line that names the key or file, exit code 1, nothing written, nothing lost.

`python -m tests.integration.test_bad_input` prints the table in docs/bad-input.md.
"""

import sys
from pathlib import Path

import pytest
import torch

from lightning_t2drl.cli import entry_point
from lightning_t2drl.config import EvaluateConfig, TrainConfig
from lightning_t2drl.evaluating import run_evaluation
from lightning_t2drl.training import train

T, E = "train.py", "evaluate.py"
ENTRY = {T: ("train", TrainConfig, train), E: ("evaluate", EvaluateConfig, run_evaluation)}
OUT = "output_dir=out"

CASES = [
    # what Hydra composes
    (T, "seedd=1", "seedd"),
    (T, "env.user=3", "env.user"),
    (T, "+env.user=3", "env.user"),
    (T, "++cacher.epsilonn=0.1", "cacher.epsilonn"),
    (T, "allocator.actor.hiddn=3", "allocator.actor.hiddn"),
    (T, "experiment=t3drl", "experiment=t3drl"),
    (T, "env=mars", "env=mars"),
    (T, "cacher=best", "cacher=best"),
    (T, "allocator=none", "allocator=none"),
    (T, "frames=many", "frames"),
    (T, "frames=1.5", "frames"),
    (T, "frames=0", "frames"),
    (T, "seed=-1", "seed"),
    (T, "env.users=abc", "env.users"),
    (T, "frames", "frames"),
    # the world
    (T, "env.users=0", "env.users"),
    (T, "env.users=-3", "env.users"),
    (T, "env.cells=2", "env.cells"),
    (T, "env.num_envs=0", "env.num_envs"),
    (T, "env.slots_per_frame=0", "env.slots_per_frame"),
    (T, "env.frames_per_episode=0", "env.frames_per_episode"),
    (T, "env.model_storage_gb=[]", "env.model_storage_gb"),
    (T, "env.model_storage_gb=[30,40]", "env.storage_capacity_gb"),
    (T, "env.model_storage_gb=[1,0]", "env.model_storage_gb"),
    (T, "env.storage_capacity_gb=nan", "env.storage_capacity_gb"),
    (T, "env.storage_capacity_gb=-1", "env.storage_capacity_gb"),
    (T, "env.zipf_skewness=[]", "env.zipf_skewness"),
    (T, "env.zipf_skewness=[1,2]", "env.popularity_transition"),
    (T, "env.popularity_transition=[[0.8,0.1,0.2],[0.1,0.8,0.1],[0.1,0.1,0.8]]", "env.popularity_transition"),
    (T, "env.popularity_transition=[[1.2,-0.1,-0.1],[0.1,0.8,0.1],[0.1,0.1,0.8]]", "env.popularity_transition"),
    (T, "env.popularity_change_every=0", "env.popularity_change_every"),
    (T, "env.popularity_observation=guess", "env.popularity_observation"),
    (T, "env.ranking=random", "env.ranking"),
    (T, "env.input_mb=[10,5]", "env.input_mb"),
    (T, "env.input_mb=[5]", "env.input_mb"),
    (T, "env.bandwidth_mhz=0", "env.bandwidth_mhz"),
    (T, "env.bandwidth_mhz=.inf", "env.bandwidth_mhz"),
    (T, "env.min_distance=300", "env.min_distance"),
    (T, "env.alpha=1.5", "env.alpha"),
    (T, "env.deadline=0", "env.deadline"),
    (T, "env.deadline_penalty=-1", "env.deadline_penalty"),
    (T, "env.backhaul_mbps=0", "env.backhaul_mbps"),
    (T, "env.step_budget=0", "env.step_budget"),
    (T, "env.service.full_steps=50", "env.service.full_steps"),
    (T, "env.service.full_steps=[170,170]", "env.service.full_steps"),
    (T, "env.service.best_metric=110", "env.service.best_metric"),
    (T, "env.service.base_seconds=abc", "env.service.base_seconds"),
    # policies, loop, trainer
    (T, "cacher.epsilon=3", "cacher.epsilon"),
    (T, "cacher.infeasible=maybe", "cacher.infeasible"),
    (T, "cacher._target_=my.Cacher", "cacher._target_"),
    (T, "cacher._target_=lightning_t2drl.replay.PackedReplay", "cacher._target_"),
    (T, "cacher.network.activation=step", "activation"),
    (T, "allocator.denoising_steps=0", "allocator.denoising_steps"),
    (T, "allocator.prediction=noise", "allocator.prediction"),
    (T, "allocator.schedule=cosine", "allocator.schedule"),
    (T, "allocator.beta_max=2", "allocator.beta"),
    (T, "allocator.discount=1.1", "allocator.discount"),
    (T, "allocator.head=argmax", "allocator.head"),
    (T, "allocator.actor.activation=step", "activation"),
    (T, "loop.slot_batch_size=0", "loop.slot_batch_size"),
    (T, "loop.gradient_clip=-1", "loop.gradient_clip"),
    (T, "trainer.precision=8-bit", "trainer.precision"),
    (T, "trainer.accelerator=tpu", "trainer.accelerator"),
    (T, "trainer.devices=0", "trainer.devices"),
    (T, "checkpoint.every_n_frames=0", "checkpoint.every_n_frames"),
    (T, "evaluation.episodes=0", "evaluation.episodes"),
    # files
    (T, "resume=missing.ckpt", "missing.ckpt"),
    (T, "resume=auto", "out"),
    (T, "resume=foreign.ckpt", "foreign.ckpt"),
    (T, "resume=text.ckpt", "text.ckpt"),
    (T, "output_dir=used", "output_dir"),
    (T, "output_dir=text.ckpt/run", "output_dir"),
    (E, "checkpoint=missing.ckpt", "missing.ckpt"),
    (E, "checkpoint=text.ckpt", "text.ckpt"),
    (E, "checkpoint=used/checkpoints/last", "used/checkpoints"),
    (E, "cacher=nope", "cacher=nope"),
    (E, "episodes=0", "episodes"),
    (E, "episodes=2 output=nowhere/result.json", "output"),
]


def complain(script, argument, directory, monkeypatch):
    """The line an entry point prints for a bad argument, in a directory with a few unsuitable files."""
    monkeypatch.chdir(directory)
    torch.save({"weights": torch.zeros(1)}, "foreign.ckpt")
    Path("text.ckpt").write_text("hello")
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    own_output = argument.startswith("output_dir=") or script == E
    monkeypatch.setattr(sys, "argv", [script, *argument.split(" "), *([] if own_output else [OUT])])
    with pytest.raises(SystemExit) as stop:
        entry_point(*ENTRY[script])
    assert stop.value.code == 1
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert after == before and not Path("out").exists()


@pytest.mark.parametrize(("script", "argument", "named"), CASES)
def test_one_line_names_it_and_nothing_is_written(script, argument, named, tmp_path, monkeypatch, capsys):
    complain(script, argument, tmp_path, monkeypatch)
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert named in captured.err
    assert "Traceback" not in captured.err + captured.out


def table():
    """The cases and the line each gives, as Markdown."""
    import contextlib
    import io
    import tempfile

    yield "| command | what it says (exit status 1) |"
    yield "| --- | --- |"
    for script, argument, _ in CASES:
        error = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as directory,
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stderr(error),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            complain(script, argument, Path(directory).resolve(), patch)
        line = error.getvalue().strip().removeprefix("error: ").replace("|", "\\|")
        yield f"| `{script} {argument}` | {line} |"


def test_the_published_table_is_this_one():
    published = Path(__file__).resolve().parents[2] / "docs" / "bad-input.md"
    assert published.read_text().splitlines()[5:] == list(table())
    assert len(CASES) >= 40


if __name__ == "__main__":
    print("# Bad input\n\nWhat a mistake gets: one line, exit status 1, nothing written. Made by")
    print("`python -m tests.integration.test_bad_input > docs/bad-input.md`, and compared with the code by a test.\n")
    print("\n".join(table()))
