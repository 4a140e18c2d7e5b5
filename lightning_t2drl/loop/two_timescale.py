"""The coordinator: one loop that alternates the frame and the slot timescale, driven by Lightning's Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.building import build_policies
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import NonFiniteError
from lightning_t2drl.loop import state as run_state
from lightning_t2drl.loop.checkpoints import resolve
from lightning_t2drl.loop.distributed import average_gradients
from lightning_t2drl.loop.finite import FiniteWatch
from lightning_t2drl.loop.keys import LoopConfig
from lightning_t2drl.loop.metrics import Meters, slot_metrics
from lightning_t2drl.loop.replay import Replay
from lightning_t2drl.loop.slots import Slot, frame
from lightning_t2drl.loop.stored import leaves, refuse_foreign, stored_sections
from lightning_t2drl.policy import Policy
from lightning_t2drl.registry import typed
from lightning_t2drl.seeding import derive_seed
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.scenario_config import ScenarioConfig


class TwoTimescaleModule(L.LightningModule):
    """Plays N worlds and trains a cacher and an allocator on them; one `training_step` is one frame.

    Every state change happens inside `training_step`, so that a checkpoint written after it is a frame boundary.

    Args:
        scenario: the world.
        cacher, allocator: the policies of the two timescales.
        loop: how much is played, stored and learned.
        num_envs: N, per rank.
        frames: length of the run; schedules are functions of frame / `schedule_frames`, which is the same unless set.
        seed: of all random numbers in here.
        compile: whether the allocator's losses are compiled.

    Raises:
        UserError: `compile` with an allocator that has nothing to compile.
    """

    def __init__(
        self,
        scenario: Scenario,
        cacher: Cacher,
        allocator: Allocator,
        loop: LoopConfig,
        num_envs: int,
        frames: int,
        seed: int,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.scenario = scenario
        self.cacher = cacher
        self.allocator = allocator
        self.loop = loop
        self.num_envs = num_envs
        self.frames = frames
        self.schedule_frames = frames
        self.seed = seed
        if compile:
            allocator.compile_update()
        self.frame = 0
        self.slots = 0
        self.gradient_steps = 0
        self.restored: dict[str, Any] | None = None
        self.checkpoint_extra: dict[str, Any] = {}
        self.last_log: dict[str, float] = {}
        self.last_evaluation: dict[str, Any] | None = None

    # -- set-up

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, trust: Collection[str] = (), **_: Any
    ) -> TwoTimescaleModule:
        """The module of a run with its trained parameters and counters, on the CPU; Lightning's own habit.

        Args:
            checkpoint_path: a file, a run's directory, or DIR/last, DIR/best.
            trust: modules outside this project whose classes the checkpoint may name.

        Raises:
            UserError: the checkpoint cannot be read or trusted.
        """
        path, checkpoint = resolve(str(checkpoint_path), warnings.warn)
        sections = stored_sections(checkpoint, path)
        refuse_foreign(dict(leaves(sections)), trust, path)
        config, env = checkpoint[run_state.KEY]["config"], sections["env"]
        num_envs = env.pop("num_envs")
        world = typed(ScenarioConfig, env, "env")
        policies = build_policies(world, sections["cacher"], sections["allocator"])
        loop = typed(LoopConfig, config["loop"], "loop")
        module = cls(*policies, loop, num_envs, config["frames"], config["seed"])
        run_state.load_parameters(module, checkpoint)
        return module

    def setup(self, stage: str) -> None:
        """Create what each rank has of its own: worlds, replay buffers and generators."""
        device, rank = self.device, self.global_rank
        self.scenario = self.scenario.to(device)
        self.env = EdgeAIGCEnv(self.scenario, self.num_envs, derive_seed(self.seed, "rank", rank), device)
        self.slot_replay = self._replay("slot", self.allocator, self.loop.slot_capacity)
        self.frame_replay = self._replay("frame", self.cacher, self.loop.frame_capacity)
        for name, policy in self.policies():
            policy.seed(self.seed, "rank", rank, name)
        self.meters = Meters()
        self.watch = FiniteWatch()

    def _replay(self, name: str, policy: Policy, capacity: int) -> Replay | None:
        if not policy.learns:
            return None
        return Replay(capacity, derive_seed(self.seed, "rank", self.global_rank, name, "replay"), self.device)

    def policies(self) -> Iterator[tuple[str, Policy]]:
        yield "cacher", self.cacher
        yield "allocator", self.allocator

    def configure_optimizers(self) -> list[Optimizer]:
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        by_name: dict[str, Optimizer] = {}
        for owner, policy in self.policies():
            policy.fused_optimizers = not scaled  # a fused step unscales gradients itself, after they are clipped
            by_name |= {f"{owner}.{name}": optimizer for name, optimizer in policy.optimizers_by_name().items()}
        self.optimizer_names = list(by_name)
        self.learning_rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in by_name.items()}
        return list(by_name.values())

    def on_train_start(self) -> None:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers] if self.optimizer_names else []
        self.optimizer = dict(zip(self.optimizer_names, optimizers, strict=True))
        if self.restored is not None:
            run_state.restore(self, self.restored)
            self.restored = None
        self.meters.start_clock(self.slots)

    # -- the loop

    def training_step(self, batch: Any, batch_idx: int) -> None:
        with torch.autocast(self.device.type, enabled=False):  # physics, replay and targets stay in float32
            self._play_frame()
        self.frame += 1
        self.slots += self.num_envs * self.scenario.slots_per_frame * self.trainer.world_size
        if self.frame % self.loop.log_every_n_frames == 0:
            self._log()

    def _play_frame(self) -> None:
        self._set_progress()
        cells = self.env.observe()
        if self.frame % self.scenario.frames_per_episode == 0:
            self.cacher.start_episode(cells)
        frame_state = self.cacher.state(cells) if self.frame_replay is not None else None
        for slot in frame(self.env, self.cacher, self.allocator, explore=True, networks=self._networks):
            self._learn_from(slot)
        if self.frame_replay is not None and frame_state is not None:
            reward, next_state = slot.following["reward", "frame"], self.cacher.state(slot.following)
            self.frame_replay.extend(self.cacher.transition(frame_state, slot.cache, reward, next_state))
            self._update("cacher", self.frame_replay, self.loop.updates_per_frame)
        if (self.frame + 1) % self.scenario.frames_per_episode == 0:
            self.env.reset()
        self._check_finite()

    def _learn_from(self, slot: Slot) -> None:
        """Measure a slot, store it and take the allocator's gradient steps."""
        self.watch.add("the allocation that the allocator returned", slot.raw)
        served, cells = slot.following["served"], slot.cells
        self.meters.add(slot_metrics(self.scenario, served, cells["attached"], cells["request"]))
        if self.slot_replay is not None:
            self.slot_replay.extend(self.allocator.transition(slot.state, slot.following, slot.next_state))
            self._update("allocator", self.slot_replay, self.loop.updates_per_slot)

    def _update(self, owner: str, replay: Replay, times: int) -> None:
        policy: Policy = self.cacher if owner == "cacher" else self.allocator
        timescale = "frame" if owner == "cacher" else "slot"
        if len(replay) < max(getattr(self.loop, f"{timescale}_warmup"), 1):
            return
        for _ in range(times):
            batch = replay.sample(getattr(self.loop, f"{timescale}_batch_size"))
            with self._networks():
                metrics = policy.update(batch, partial(self._minimise, owner))
            self.meters.add({f"{owner}/{key}": value for key, value in metrics.items()})

    def _minimise(self, owner: str, name: str, loss: Tensor) -> None:
        """One gradient step on one optimizer's parameters; no other parameter gets a gradient."""
        self.watch.add(f"the {name} loss of the {owner}", loss)
        optimizer = self.optimizer[f"{owner}.{name}"]
        parameters = _parameters(optimizer)
        for p in parameters:
            p.grad = None
        self.manual_backward(loss, inputs=parameters)
        average_gradients(parameters, self.trainer.world_size)
        optimizer.step()
        self.gradient_steps += 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.loop.gradient_clip:  # here gradients are unscaled whatever the precision
            nn.utils.clip_grad_norm_(_parameters(optimizer), self.loop.gradient_clip)

    def _set_progress(self) -> None:
        for owner, policy in self.policies():
            policy.progress = self.frame / self.schedule_frames
            for name, rate in self.learning_rates.items():
                if name.startswith(owner):
                    for group in self.optimizer[name].param_groups:
                        group["lr"] = rate * policy.learning_rate_factor

    def _networks(self) -> AbstractContextManager[Any]:
        """The configured precision, for what networks compute."""
        return self.trainer.precision_plugin.forward_context()

    def _check_finite(self) -> None:
        """Raise `NonFiniteError` with its origin if anything in this frame was NaN or infinite."""
        try:
            self.watch.check(f"frame {self.frame}")
        except NonFiniteError as error:
            bad = next((n for n, p in self.named_parameters() if not bool(p.isfinite().all())), None)
            found = f"parameter {bad} holds NaN or infinity" if bad else "all parameters are finite"
            raise NonFiniteError(f"{error}; {found}") from None

    # -- logs and checkpoints

    def _log(self) -> None:
        counters = {"frame": self.frame, "slots": self.slots, "gradient_steps": self.gradient_steps}
        self.last_log = counters | self.meters.take(self.slots)
        for logger in self.loggers:
            logger.log_metrics(self.last_log, step=self.frame)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run_state.save(self, checkpoint)
        # A complete run may be made longer, and its last batch is then no longer the last.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.restored = run_state.mine(self, checkpoint)


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
