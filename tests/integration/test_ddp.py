"""Two processes: gradients are averaged, parameters stay equal, each rank's state resumes exactly."""

import copy
import threading

import lightning as L
import pytest
import torch
import torch.distributed as dist

from callbacks import FrameCheckpoint
from lightning_t2drl import run_state
from lightning_t2drl.checkpoints import AtomicCheckpointIO, in_order, load_checkpoint
from lightning_t2drl.config import EnvConfig, build_policies
from lightning_t2drl.distributed import AlternatingDDPStrategy
from lightning_t2drl.errors import UserError
from lightning_t2drl.training import Frames
from lightning_t2drl.two_timescale import LoopConfig, TwoTimescaleModule
from tests.conftest import differences

SET = {
    "_target_": "lightning_t2drl.allocators.d3pg.D3PGAllocator",
    "actor": {"_target_": "lightning_t2drl.networks.sets.SetTrunk", "hidden": 8},
    "critic": {"_target_": "lightning_t2drl.networks.sets.SetCritic", "hidden": 8},
    "head": "competitive",
    "prediction": "sample",
}
DDQN = {"_target_": "lightning_t2drl.cachers.ddqn.DDQNCacher", "target_every": 2}
LOOP = LoopConfig(slot_warmup=12, frame_warmup=4, slot_batch_size=8, frame_batch_size=8, slot_capacity=60,
                  gradient_clip=0.0, log_every_n_frames=1)  # fmt: skip


def make(frames, loop=LOOP):
    L.seed_everything(0, verbose=False)
    env = EnvConfig(frames_per_episode=2, slots_per_frame=3, num_envs=4)
    return TwoTimescaleModule(*build_policies(env, DDQN, SET), loop, 4, frames, seed=1)


def fit(module, directory, devices=2, resume=None, callbacks=(), precision="32-true"):
    strategy = AlternatingDDPStrategy(start_method="fork", process_group_backend="gloo") if devices > 1 else "auto"
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        precision=precision,
        logger=False,
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
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
            barrier.wait(60)
            for p, *gradients in zip(parameters, shared[0], shared[1], strict=True):
                p.grad = None if gradients[0] is None else (gradients[0] + gradients[1]) / 2
            barrier.wait(60)
            optimizer.step()

        module._minimise = minimise
        for _ in range(frames):
            module.training_step(None, 0)

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    reference = modules[0].state_dict()
    assert ddp[run_state.KEY]["frame"] == modules[0].frame == frames
    for key, value in ddp["state_dict"].items():
        torch.testing.assert_close(value, reference[key], rtol=1e-5, atol=1e-6)
    moved = [not torch.equal(v, make(frames).state_dict()[k]) for k, v in reference.items() if "actor" in k]
    assert all(moved)


def test_ddp_run_resumes_exactly_on_both_ranks(tmp_path):
    whole = fit(make(6), tmp_path / "whole")
    fit(make(6), tmp_path / "part")
    for late in in_order(tmp_path / "part")[2:]:
        late.unlink()
    resumed = fit(make(6), tmp_path / "part", resume=in_order(tmp_path / "part")[1])
    assert len(whole[run_state.KEY]["ranks"]) == 2
    assert differences(whole, resumed) == []
    assert differences(*whole[run_state.KEY]["ranks"]) != []


def test_a_changed_world_size_says_so(tmp_path):
    fit(make(2), tmp_path)
    with pytest.raises(UserError, match=r"written by 2 process\(es\), this run has 1"):
        fit(make(4), tmp_path, devices=1, resume=in_order(tmp_path)[-1])


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_physics_replay_and_optimizer_stay_in_float32(precision, tmp_path):
    checkpoint = fit(make(4), tmp_path, devices=1, precision=precision)
    state = checkpoint[run_state.KEY]["ranks"][0]
    rows = state["replay"]["slot"]["_storage"]["_storage"]
    assert rows.dtype == state["env"]["world"]["gain"].dtype == torch.float32
    assert all(v.dtype == torch.float32 for v in checkpoint["state_dict"].values())
    assert all(torch.isfinite(v).all() for v in checkpoint["state_dict"].values())


def test_clipping_acts_on_true_gradients(tmp_path, monkeypatch):
    """What the optimizer sees after the hook has the configured norm at most."""
    loop = copy.copy(LOOP)
    loop.gradient_clip = 1e-3
    norms = []

    module = make(3, loop)
    real = module.clip_gradients

    def clip(optimizer, *args):
        real(optimizer, *args)
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.cat(grads).norm().item())

    monkeypatch.setattr(module, "clip_gradients", clip)
    fit(module, tmp_path, devices=1)
    assert norms and max(norms) <= 1e-3 * (1 + 1e-3)
