"""How much is measured: the default, `--quick`, and next to nothing for the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Amounts of work by item; as they stand here, those of the default run.

    Args:
        name: as the report calls it.
        decision, update, environment, replay, growth: seconds each comparison is timed for (update: per batch size;
            growth: per axis).
        rounds: least number of rounds of any comparison.
        exported: allocators whose exported decision is measured.
        compiled: activations with which a compiled update is measured; compiling takes most of the time.
        environments: numbers of worlds N whose slots per second are measured.
        frames, warm_up_frames: frames of the training run that are measured, and that go before.
        frame_overrides: changes to the training run's default settings.
        growth_points: how many values of each growth axis, smallest first.
        updates: length of the drift run.
    """

    name: str = "default"
    decision: float = 45
    update: float = 100
    environment: float = 90
    replay: float = 45
    growth: float = 45
    rounds: int = 7
    exported: tuple[str, ...] = ("d3pg", "d3pg_set")
    compiled: tuple[str, ...] = ("mish", "silu", "relu")
    environments: tuple[int, ...] = (1, 64, 1024, 8192)
    frames: int = 120
    warm_up_frames: int = 20
    frame_overrides: tuple[str, ...] = ()
    growth_points: int = 99
    updates: int = 5000


DEFAULT = Budget()

QUICK = Budget(
    "quick", decision=6, update=12, environment=20, replay=6, growth=4, rounds=4, compiled=(), frames=40, updates=2000
)

TINY = Budget(
    "tiny",
    decision=0,
    update=0,
    environment=0,
    replay=0,
    growth=0,
    rounds=2,
    exported=("d3pg",),
    compiled=(),
    environments=(1, 3),
    frames=4,
    warm_up_frames=4,
    frame_overrides=(
        "env.num_envs=4",
        "env.frames_per_episode=2",
        "env.slots_per_frame=3",
        "loop.slot_warmup=12",
        "loop.frame_warmup=4",
        "loop.slot_batch_size=8",
        "loop.frame_batch_size=8",
        "loop.log_every_n_frames=1",
        "checkpoint.every_n_frames=2",
        "evaluation.every_n_frames=2",
        "evaluation.episodes=2",
    ),
    growth_points=2,
    updates=20,
)

BUDGETS = {budget.name: budget for budget in (DEFAULT, QUICK, TINY)}
