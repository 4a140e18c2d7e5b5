"""What the entry points are told: schemas of the composed configuration, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.checks import one_of, within
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.evaluation import EvaluationConfig
from lightning_t2drl.loop.two_timescale import LoopConfig
from lightning_t2drl.policy import Policy
from lightning_t2drl.registry import build, typed
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.scenario_config import ScenarioConfig, build_scenario

T = TypeVar("T")
P = TypeVar("P", bound=Policy)

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
        within("", self, seed=(0, 2**63 - 1), frames=(1, 1e12))
        if self.schedule_frames is not None:
            within("", self, schedule_frames=(1, 1e12))


@dataclass
class EvaluateConfig:
    """The composed configuration of `evaluate.py`; `configs/evaluate.yaml` says what each key means."""

    checkpoint: str | None = None
    episodes: int = 200
    seed: int = 1_000_003
    output: str | None = None
    progress_bar: bool = True
    env: EnvConfig = field(default_factory=EnvConfig)
    cacher: Any = None
    allocator: Any = None

    def __post_init__(self) -> None:
        within("", self, seed=(0, 2**63 - 1), episodes=(1, 1e6))


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
    values: list[float] = field(default_factory=list)
    transfer: bool = False
    curves: bool = False
    reference: str = "rcars"
    best: str = "oracle"
    gather: list[str] = field(default_factory=list)
    learners: dict[str, LearnerConfig] = field(default_factory=dict)
    fixed: dict[str, list[str]] = field(default_factory=dict)
    seeds_small: int = 5
    seeds_full: int = 10
    frames_small: int = 160
    frames_full: int = 1000
    episodes_small: int = 100
    episodes_full: int = 500
    slow_episodes_small: int = 4
    slow_episodes_full: int = 20

    def __post_init__(self) -> None:
        counts = (1, 1e6)
        within("suite", self, seeds_small=counts, seeds_full=counts, frames_small=counts, frames_full=counts)
        within("suite", self, episodes_small=counts, episodes_full=counts)
        within("suite", self, slow_episodes_small=counts, slow_episodes_full=counts)

    def amount(self, what: str, budget: str) -> int:
        """`seeds`, `frames`, `episodes` or `slow_episodes` on a budget."""
        return int(getattr(self, f"{what}_{budget}"))


@dataclass
class BenchmarkConfig:
    """The composed configuration of `benchmark.py`; `configs/benchmark.yaml` says what each key means."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    budget: str = "small"
    output_dir: str = "results"
    work_dir: str = "runs/benchmark"
    workers: int = 2
    job: int | None = None

    def __post_init__(self) -> None:
        one_of("", self, budget=("small", "full"))
        within("", self, workers=(1, 1024))
        if self.job is not None:
            within("", self, job=(0, 1e9))


@dataclass
class ExportConfig:
    """The composed configuration of `export.py`; `configs/export.yaml` says what each key means."""

    checkpoint: str | None = None
    output: str = "policy"


def strict(schema: type[T], config: DictConfig | Mapping[str, Any]) -> T:
    """A composed config as an instance of its schema; also catches what `+key=` smuggled past Hydra.

    Raises:
        UserError: one line that names the key.
    """
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return typed(schema, config, "")


def build_policies(env: EnvConfig, cacher: Any, allocator: Any) -> tuple[Scenario, Cacher, Allocator]:
    """The scenario and both policies of a composed config, on the CPU, parameters from PyTorch's global generator.

    Raises:
        UserError: naming the key that cannot be.
    """
    scenario = build_scenario(env)
    return scenario, _policy("cacher", cacher, Cacher, scenario), _policy("allocator", allocator, Allocator, scenario)


def _policy(section: str, content: Any, base: type[P], scenario: Scenario) -> P:
    policy = build(content, scenario, key=section)
    if not isinstance(policy, base):
        raise UserError(f"{section}._target_: {content['_target_']} is not a {base.__name__}")
    return policy
