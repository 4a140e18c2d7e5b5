"""How much is measured: the default, `--quick`, and next to nothing for the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Amounts of work; as they stand here, those of the default run.

    Args:
        name: as the report calls it.
        seconds: each table is timed for so long.
        rounds: least number of rounds of any table.
        exported: whether exported decisions are measured; exporting takes half a minute.
        compiled: whether compiled updates and slots are measured; compiling takes about a minute.
        environments: numbers of worlds N whose slots per second are measured.
        experiments: whose training frames are measured.
        frames, warm_up_frames: frames of each training run that are measured, and that go before.
        frame_overrides: changes to the training runs' default settings.
        users: numbers of users U at which slots are solved exactly; the oracle's caches at those up to 80.
        oracle_slots: slots of the last round in which the oracle compares caches.
        growth_points: how many values of each growth axis, smallest first.
        updates: length of the drift run.
    """

    name: str = "default"
    seconds: float = 60
    rounds: int = 7
    exported: bool = True
    compiled: bool = True
    environments: tuple[int, ...] = (1, 64, 1024)
    experiments: tuple[str, ...] = ("quickstart", "t2drl_cells")
    frames: int = 60
    warm_up_frames: int = 20
    frame_overrides: tuple[str, ...] = ()
    users: tuple[int, ...] = (10, 80, 200)
    oracle_slots: int = 1024
    growth_points: int = 99
    updates: int = 5000


QUICK = Budget("quick", seconds=8, rounds=4, frames=20, updates=1000)

TINY = Budget(
    "tiny",
    seconds=0,
    rounds=2,
    exported=False,
    compiled=False,
    environments=(1, 3),
    experiments=("quickstart",),
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
    users=(4,),
    oracle_slots=16,
    growth_points=2,
    updates=20,
)

BUDGETS = {budget.name: budget for budget in (Budget(), QUICK, TINY)}
