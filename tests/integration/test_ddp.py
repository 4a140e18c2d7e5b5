"""Two processes and mixed precision: what is averaged, what stays equal, what stays in float32, what resumes exactly."""

import json
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.survival import RUN, compare, differences, finish, newest, start
from lightning_t2drl.building import build_policies
from lightning_t2drl.callbacks import FrameCheckpoint
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop import state as run_state
from lightning_t2drl.loop.checkpoints import AtomicCheckpointIO, in_order, load_checkpoint
from lightning_t2drl.loop.distributed import AlternatingDDPStrategy
from lightning_t2drl.loop.two_timescale import LoopConfig, TwoTimescaleModule
from lightning_t2drl.run.schemas import EnvConfig
from lightning_t2drl.run.train import Frames
from lightning_t2drl.system.scenario_config import CONFIG_ROOT
from tests.limits import seconds

SET = {
    "_target_": "lightning_t2drl.allocators.d3pg.D3PGAllocator",
    "actor": {"_target_": "lightning_t2drl.networks.sets.SetTrunk", "hidden": 8},
    "critic": {"_target_": "lightning_t2drl.networks.sets.SetCritic", "hidden": 8},
    "head": {"_target_": "lightning_t2drl.networks.heads.CompetitiveHead"},
    "diffusion": {"_target_": "lightning_t2drl.networks.actors.diffusion.SampleDiffusion"},
}
DDQN = {"_target_": "lightning_t2drl.cachers.ddqn.DDQNCacher", "target_every": 2}
LOOP = LoopConfig(slot_warmup=12, frame_warmup=4, slot_batch_size=8, frame_batch_size=8, slot_capacity=60,
                  gradient_clip=0.0, log_every_n_frames=1)  # fmt: skip


def make(frames, loop=LOOP, **world):
    L.seed_everything(0, verbose=False)
    env = EnvConfig(frames_per_episode=2, slots_per_frame=3, num_envs=4, **world)
    return TwoTimescaleModule(*build_policies(env, DDQN, SET), loop, 4, frames, seed=1)


def fit(module, directory, devices=2, resume=None, callbacks=(), precision="32-true"):
    strategy = AlternatingDDPStrategy(start_method="fork", process_group_backend="gloo") if devices > 1 else "auto"
    scaled = precision == "16-mixed"  # with a gradient scaler, which Lightning makes for GPUs only
    mixed = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))] if scaled else []
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        precision=None if scaled else precision,
        logger=False,
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO(), *mixed],
        callbacks=[*callbacks, FrameCheckpoint(directory, every_n_frames=2, keep=10)],
    )
    trainer.fit(module, Frames(module.frames), ckpt_path=resume, weights_only=True)
    return load_checkpoint(in_order(directory)[-1])


class RanksAgree(L.Callback):
    """Every rank's parameters equal rank 0's after every frame; ranks play different worlds."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        flat = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        world = pl_module.env.get_state()["world"]["gain"].flatten().clone()
        for mine, same in ((flat, True), (world, False)):
            theirs = mine.clone()
            dist.broadcast(theirs, src=0)
            assert pl_module.global_rank == 0 or torch.equal(mine, theirs) == same


class Plain:
    scaler = None

    def forward_context(self):
        return torch.autocast("cpu", enabled=False)


def names(module):
    return [f"{owner}.{name}" for owner, policy in module.policies() for name in policy.optimizers_by_name()]


def test_two_ranks_equal_the_single_process_mean_of_their_gradients(tmp_path):
    """Rank by rank generators make each rank's batches known; a reference averages their gradients by hand."""
    frames = 4
    ddp = fit(make(frames), tmp_path, callbacks=[RanksAgree()])

    modules = [make(frames), make(frames)]
    barrier = threading.Barrier(2)
    shared: dict[int, list[torch.Tensor]] = {}

    def play(rank):
        torch.set_num_threads(1)
        module = modules[rank]
        module.__class__ = type("Ranked", (TwoTimescaleModule,), {"global_rank": rank, "loggers": []})
        module._trainer = type("T", (), {"world_size": 2, "precision_plugin": Plain()})()
        module.setup("fit")
        optimizers = dict(zip(names(module), module.configure_optimizers(), strict=True))
        module.optimizer = optimizers

        def minimise(owner, name, loss):
            optimizer = optimizers[f"{owner}.{name}"]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shared[rank] = list(torch.autograd.grad(loss, parameters, allow_unused=True))
            barrier.wait(seconds(60))
            for p, *gradients in zip(parameters, shared[0], shared[1], strict=True):
                p.grad = None if gradients[0] is None else (gradients[0] + gradients[1]) / 2
            barrier.wait(seconds(60))
            optimizer.step()

        module._minimise = minimise
        for _ in range(frames):
            module.training_step(None, 0)

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds(120))
    reference = modules[0].state_dict()
    assert ddp[run_state.KEY]["frame"] == modules[0].frame == frames
    for key, value in ddp["state_dict"].items():
        torch.testing.assert_close(value, reference[key], rtol=1e-5, atol=1e-6)
    moved = [not torch.equal(v, make(frames).state_dict()[k]) for k, v in reference.items() if "actor" in k]
    assert all(moved)


def test_ranks_agree_where_each_has_other_cells_full(tmp_path):
    """Each rank's batches hold the users that its own cells serve, as many as there are."""
    module = make(2, cells=3, active_users=[2, 10], popularity_scope="per_cell")
    fit(module, tmp_path, callbacks=[RanksAgree()])


def test_ddp_run_resumes_exactly_on_both_ranks(tmp_path):
    whole = fit(make(6), tmp_path / "whole")
    fit(make(6), tmp_path / "part")
    for late in in_order(tmp_path / "part")[2:]:
        late.unlink()
    resumed = fit(make(6), tmp_path / "part", resume=in_order(tmp_path / "part")[1])
    assert len(whole[run_state.KEY]["ranks"]) == 2
    assert differences(whole, resumed) == []
    assert differences(*whole[run_state.KEY]["ranks"]) != []


def two_nodes(arguments, place):
    """`train.py` on two nodes of one process each, in the environment that torchrun gives its workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        start([*arguments, "trainer.num_nodes=2", "trainer.devices=1"], place / f"node{node}.log", **shared,
              RANK=str(node), GROUP_RANK=str(node), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        for node in range(2)
    ]  # fmt: skip


def test_two_processes_killed_and_resumed_equal_the_launchers_own_untouched_run(tmp_path):
    """Whichever way two ranks are started, it is one run: here as two nodes, there because `trainer.devices=2`."""
    arguments = [*RUN, "frames=16"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, CONFIG_ROOT.parent / "train.py", *arguments, "trainer.devices=2", f"output_dir={whole}"]
    launched = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    arguments += ["trainer=ddp", "trainer.accelerator=cpu", f"output_dir={killed}", "resume=auto"]
    ranks = two_nodes(arguments, tmp_path)
    while newest(killed) == 0 and ranks[0].is_alive():
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.2))
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.join()
    frame = newest(killed)
    assert 0 < frame < 16, (tmp_path / "node0.log").read_text()
    for node, rank in enumerate(two_nodes(arguments, tmp_path)):
        finish(rank, tmp_path / f"node{node}.log")

    output, _ = launched.communicate(timeout=seconds(120))
    assert launched.returncode == 0, output
    assert all(compare(whole, killed).values()), (frame, compare(whole, killed))
    assert output.count("results in") == 1 and (tmp_path / "node1.log").read_text() == ""
    assert json.loads((whole / "summary.json").read_text())["slots"] == 16 * 3 * 4 * 2


def test_a_changed_world_size_says_so(tmp_path):
    fit(make(2), tmp_path)
    with pytest.raises(UserError, match=r"written by 2 process\(es\), this run has 1"):
        fit(make(4), tmp_path, devices=1, resume=in_order(tmp_path)[-1])


def dtypes(content):
    """Of all tensors in a checkpoint."""
    if isinstance(content, torch.Tensor):
        return {content.dtype}
    values = content.values() if isinstance(content, dict) else content if isinstance(content, (list, tuple)) else ()
    return set().union(*(dtypes(value) for value in values))


def test_only_networks_compute_in_half_precision(tmp_path):
    """Parameters, optimizers, targets, replay and physics are in float32 whatever the precision."""
    seen, ends = set(), {}
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        module = make(4)
        for policy in (module.allocator, module.cacher):

            def watched(*args, real=policy.target, **kwargs):
                target = real(*args, **kwargs)
                seen.add(target.dtype)
                return target

            policy.target = watched
        ends[precision] = fit(module, tmp_path / precision, devices=1, precision=precision)
    assert seen == {torch.float32}
    for checkpoint in ends.values():
        assert dtypes(checkpoint) <= {torch.float32, torch.float64, torch.int32, torch.int64, torch.bool, torch.uint8}
        assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())
    flat = [torch.cat([v.flatten() for v in c["state_dict"].values()]) for c in ends.values()]
    assert not torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])  # half precision was used


def test_a_run_under_a_gradient_scaler_resumes_exactly(tmp_path):
    whole = fit(make(6), tmp_path / "whole", devices=1, precision="16-mixed")
    fit(make(6), tmp_path / "part", devices=1, precision="16-mixed")
    for late in in_order(tmp_path / "part")[2:]:
        late.unlink()
    resumed = fit(make(6), tmp_path / "part", 1, resume=in_order(tmp_path / "part")[1], precision="16-mixed")
    assert differences(whole, resumed) == []
    assert whole["MixedPrecision"]["scale"] > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_clipping_acts_on_true_gradients(precision, tmp_path):
    """What every optimizer stepped along has the configured norm; clipped while scaled, it would be far smaller."""
    norms = []

    def measure(optimizer, *_):
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.cat(grads).norm().item())

    handle = register_optimizer_step_post_hook(measure)
    try:
        fit(make(3, replace(LOOP, gradient_clip=1e-3)), tmp_path, devices=1, precision=precision)
    finally:
        handle.remove()
    assert norms and max(norms) == pytest.approx(1e-3, rel=1e-2)
