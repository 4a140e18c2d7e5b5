"""Schemas of the composed configurations, checked before anything starts, PyTorch included."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any

from lightning_t2drl.checks import one_of, within
from lightning_t2drl.deploy.serve import ServeConfig
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.keys import EvaluationConfig, LoopConfig
from lightning_t2drl.system.keys import ScenarioConfig

REFERENCES = ("rcars", "oracle")
BUDGETS = ("tiny", "small", "full")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass
class EnvConfig(ScenarioConfig):
    """`configs/env/*.yaml`: a scenario and how many worlds of it run side by side."""

    num_envs: int = 32

    def __post_init__(self) -> None:
        within("env", self, num_envs=(1, 1e6))


@dataclass
class TrainerConfig:
    """`configs/trainer/*.yaml`: where and in which precision networks run."""

    accelerator: str = "cpu"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    threads: int = 1

    def __post_init__(self) -> None:
        one_of("trainer", self, accelerator=("cpu", "gpu", "auto"), strategy=("auto", "ddp"), precision=PRECISIONS)
        within("trainer", self, num_nodes=(1, 10_000), threads=(1, 1024))
        if self.devices != "auto" and not (isinstance(self.devices, int) and self.devices >= 1):
            raise UserError(f"trainer.devices: {self.devices!r} is neither a number of at least 1 nor auto")


@dataclass
class LoggerConfig:
    """`configs/logger/*.yaml`: trackers beside `metrics.csv`, which is always written."""

    wandb: bool = False
    tensorboard: bool = False
    offline: bool = False
    project: str = "lightning-t2drl"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = "train"
    tags: list[str] = field(default_factory=list)
    log_checkpoint: bool = True


@dataclass
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_n_frames: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        within("checkpoint", self, every_n_frames=(1, 1e9), keep=(1, 1e6))


@dataclass
class TrainConfig:
    """The composed configuration of `train.py`; `configs/train.yaml` says what each key means."""

    name: str = "t2drl"
    seed: int = 0
    frames: int = 1000
    schedule_frames: int | None = None
    output_dir: str | None = None
    resume: str | None = None
    compile: bool = False
    progress_bar: bool = True
    figures: bool = True
    env: EnvConfig = field(default_factory=EnvConfig)
    cacher: Any = None
    allocator: Any = None
    loop: LoopConfig = field(default_factory=LoopConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _check_name(self.name)
        within("", self, seed=(0, 2**63 - 1), frames=(1, 1e12))
        if self.schedule_frames is not None:
            within("", self, schedule_frames=(1, 1e12))


@dataclass
class _OfPolicies:
    """Keys of every command that takes a checkpoint, or any pair of policies."""

    checkpoint: str | None = None
    trust: list[str] = field(default_factory=list)
    name: str = "random+equal"
    env: EnvConfig = field(default_factory=EnvConfig)
    cacher: Any = None
    allocator: Any = None

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass
class EvaluateConfig(_OfPolicies):
    """The composed configuration of `evaluate`; `configs/evaluate.yaml` says what each key means."""

    episodes: int = 200
    seed: int = 1_000_003
    references: list[str] = field(default_factory=lambda: ["rcars", "oracle"])
    records: bool = False
    output_dir: str | None = None
    progress_bar: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        within("", self, seed=(0, 2**63 - 1), episodes=(1, 1e6))
        if unknown := [name for name in self.references if name not in REFERENCES]:
            raise UserError(f"references: {unknown[0]!r} is none of {', '.join(REFERENCES)}")


@dataclass
class LearnerConfig:
    """A scheme that trains: an experiment, what is changed of it, and its length in units of the suite's frames."""

    experiment: str = ""
    overrides: list[str] = field(default_factory=list)
    length: float = 1.0


@dataclass
class SuiteConfig:
    """`configs/suite/*.yaml`: what a benchmark compares."""

    name: str = ""
    env: str = "paper"
    sweep: str | None = None
    values: list[Any] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)
    transfer: bool = False
    evaluated: list[str] = field(default_factory=list)
    curves: bool = False
    reference: str = "rcars"
    best: str = "oracle"
    gather: list[str] = field(default_factory=list)
    learners: dict[str, LearnerConfig] = field(default_factory=dict)
    fixed: dict[str, list[str]] = field(default_factory=dict)
    seeds_tiny: int = 1
    seeds_small: int = 5
    seeds_full: int = 10
    frames_tiny: int = 8
    frames_small: int = 120
    frames_full: int = 1000
    episodes_tiny: int = 2
    episodes_small: int = 100
    episodes_full: int = 500
    slow_episodes_tiny: int = 1
    slow_episodes_small: int = 4
    slow_episodes_full: int = 20

    def __post_init__(self) -> None:
        for place, value in enumerate(self.values):
            if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value):
                self.values[place] = float(value)
            elif value not in self.words:
                known = f", nor one of {', '.join(self.words)}" if self.words else ""
                raise UserError(f"suite.values: {value!r} is no number{known}")
        amounts = ("seeds", "frames", "episodes", "slow_episodes")
        within("suite", self, **{f"{what}_{budget}": (1, 1e6) for what in amounts for budget in BUDGETS})

    def amount(self, what: str, budget: str) -> int:
        """`seeds`, `frames`, `episodes` or `slow_episodes` on a budget."""
        return int(getattr(self, f"{what}_{budget}"))


@dataclass
class BenchmarkConfig:
    """The composed configuration of `benchmark`; `configs/benchmark.yaml` says what each key means."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    budget: str = "small"
    output_dir: str = "runs/benchmark"
    publish: bool = False
    workers: int = 2

    def __post_init__(self) -> None:
        one_of("", self, budget=BUDGETS)
        within("", self, workers=(1, 1024))


@dataclass
class ExportConfig(_OfPolicies):
    """The composed configuration of `export`; `configs/export.yaml` says what each key means."""

    name: str = "t2drl"
    output_dir: str | None = None


@dataclass
class ExplainConfig(_OfPolicies):
    """The composed configuration of `explain`; `configs/explain.yaml` says what each key means."""

    slot: list[str] = field(default_factory=list)
    seed: int = 0
    output_dir: str | None = None
    progress_bar: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        within("", self, seed=(0, 2**63 - 1))


@dataclass
class ViewConfig(_OfPolicies):
    """The composed configuration of `view`; `configs/view.yaml` says what each key means."""

    records: list[str] = field(default_factory=list)
    episodes: int = 10
    seed: int = 1_000_003
    oracle_slots: int = 256
    output_dir: str | None = None
    progress_bar: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        within("", self, seed=(0, 2**63 - 1), episodes=(1, 1000), oracle_slots=(0, 1e6))


@dataclass
class SpaceConfig:
    """`configs/space/*.yaml`: the keys that a search tries, and their ranges."""

    keys: list[Any] = field(default_factory=list)


@dataclass
class TuneConfig:
    """The composed configuration of `tune`; `configs/tune.yaml` says what each key means."""

    space: SpaceConfig = field(default_factory=SpaceConfig)
    train: list[str] = field(default_factory=list)
    trials: int = 50
    workers: int = 1
    prune: bool = True
    startup_trials: int = 8
    study: str = "t2drl"
    storage: str | None = None
    heartbeat: int = 60
    output_dir: str | None = None

    def __post_init__(self) -> None:
        within("", self, trials=(1, 1e6), workers=(1, 1024), startup_trials=(1, 1e6), heartbeat=(1, 1e6))


@dataclass
class CompareConfig:
    """The composed configuration of `compare`; `configs/compare.yaml` says what each key means."""

    runs: list[str] = field(default_factory=list)
    x: str = "slots"
    references: bool = True
    figures: bool = True
    output_dir: str | None = None

    def __post_init__(self) -> None:
        one_of("", self, x=("slots", "frame"))


OF_A_CALLABLE = ("better", "modality", "whole_chain")  # keys of `calibrate` that say what an own callable is
OF_OUR_MODELS = ("size", "chain", "iterations")  # and those on the models that the project trains


@dataclass
class CalibrateConfig:
    """The composed configuration of `calibrate`; `configs/calibrate.yaml` says what each key means."""

    service: str = "inpaint"
    name: str | None = None
    size: str = "large"
    chain: str = "respaced"
    metric: str | None = None
    better: str = "higher"
    modality: str = "image"
    whole_chain: int | None = None
    steps: list[int] | None = None
    samples: int | None = None
    iterations: int | None = None
    batches: list[int] = field(default_factory=lambda: [1, 4, 16])
    clock: str = "cpu"
    full_seconds: float | None = None
    seed: int = 0
    output_dir: str | None = None
    progress_bar: bool = True

    def __post_init__(self) -> None:
        if self.name is not None:
            _check_name(self.name)
        one_of("", self, size=("small", "large"), chain=("respaced", "cut"), clock=("cpu", "wall"))
        one_of("", self, better=("lower", "higher"), modality=("image", "text", "video"))
        idle = {"inpaint": OF_A_CALLABLE, "text": (*OF_A_CALLABLE, "chain"), "video": (*OF_A_CALLABLE, "chain")}
        for known in fields(self):
            if known.name in idle.get(self.service, OF_OUR_MODELS) and getattr(self, known.name) != known.default:
                raise UserError(f"{known.name}: counts for nothing with service={self.service}")
        within("", self, seed=(0, 2**63 - 1))
        given = {"samples": (2, 1e6), "iterations": (1, 1e9), "full_seconds": (1e-6, 1e6), "whole_chain": (1, 1e6)}
        within("", self, **{key: ends for key, ends in given.items() if getattr(self, key) is not None})
        if self.steps is not None and (len(set(self.steps)) < 5 or min(self.steps) < 1):
            raise UserError(f"steps: {self.steps} is no list of at least 5 different numbers from 1 on")
        if not self.batches or min(self.batches) < 1:
            raise UserError(f"batches: {self.batches} is no list of numbers from 1 on")


@dataclass
class TraceConfig:
    """The composed configuration of `trace`; `configs/trace.yaml` says what each key means."""

    slots: int = 1000
    seed: int = 0
    output: str = "trace.csv"
    progress_bar: bool = True
    env: EnvConfig = field(default_factory=EnvConfig)

    def __post_init__(self) -> None:
        within("", self, seed=(0, 2**63 - 1), slots=(1, 1e9))


@dataclass
class DiagnoseConfig(_OfPolicies):
    """The composed configuration of `diagnose`; `configs/diagnose.yaml` says what each key means."""

    name: str = "t2drl"
    seed: int = 1_000_003
    worlds: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        within("", self, seed=(0, 2**63 - 1), worlds=(1, 1e6))


def _check_name(name: str) -> None:
    """A scheme's name is a row of tables and a folder below `runs/`."""
    if not name.strip(" .") or "/" in name or not name.isprintable():
        raise UserError(f"name: {name!r} cannot be the name of a folder")


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "benchmark": BenchmarkConfig,
    "export": ExportConfig,
    "compare": CompareConfig,
    "calibrate": CalibrateConfig,
    "explain": ExplainConfig,
    "view": ViewConfig,
    "tune": TuneConfig,
    "trace": TraceConfig,
    "diagnose": DiagnoseConfig,
    "serve": ServeConfig,
}
