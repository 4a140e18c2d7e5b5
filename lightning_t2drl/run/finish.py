"""What a run leaves when it has played its frames: final evaluation, figures, W&B artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.cachers.random import RandomCacher, RandomConfig
from lightning_t2drl.files import write_atomically
from lightning_t2drl.loop.checkpoints import in_order
from lightning_t2drl.loop.evaluation import evaluate, summarise
from lightning_t2drl.loop.two_timescale import TwoTimescaleModule
from lightning_t2drl.run.figures import draw_run
from lightning_t2drl.run.loggers import FrameWandbLogger
from lightning_t2drl.run.schemas import TrainConfig
from lightning_t2drl.run.tables import improvement, schemes_table

REFERENCE = "random+equal"  # the scheme that results are compared with


def finish_run(
    config: TrainConfig, module: TwoTimescaleModule, directory: Path, loggers: list[Any], console: Console
) -> dict[str, Any]:
    """Final evaluation beside random caching with equal split, figures, W&B artifacts."""
    results = None
    summary: dict[str, Any] = {}
    if config.evaluation.final_episodes:
        results = final_evaluation(config, module)
        write_atomically(directory / "evaluation.json", json.dumps(results, indent=2) + "\n")
        console.print(schemes_table(results), soft_wrap=False)
        ours, reference = results["schemes"][config.name], results["schemes"][REFERENCE]
        for key, label in (("hit_ratio", "model hit ratio"), ("total_utility", "total utility")):
            summary[f"{key}_improvement_percent"] = improvement(ours, reference, key)
            console.print(
                f"{label}: {summary[f'{key}_improvement_percent']:+.2f} % over random caching with equal split"
            )
        summary["total_utility"] = ours["total_utility"]["mean"]
        summary["hit_ratio"] = ours["hit_ratio"]["mean"]
    figures = draw_run(directory, results) if config.figures else []
    console.print(
        f"results in {directory}: " + ", ".join(sorted(p.name for p in directory.iterdir() if p.name[0] != "."))
    )
    checkpoint = in_order(directory / "checkpoints")[-1] if config.logger.log_checkpoint else None
    final = {} if results is None else {k: v["mean"] for k, v in results["schemes"][config.name].items()}
    for logger in loggers:
        if isinstance(logger, FrameWandbLogger):
            logger.log_results(module.frame, figures, checkpoint, final)
    return summary


def final_evaluation(config: TrainConfig, module: TwoTimescaleModule) -> dict[str, Any]:
    """The trained pair and random caching with equal split on the same worlds, as `evaluation.json` holds it."""
    scenario = module.scenario.to("cpu")
    pairs = {
        config.name: (module.cacher.cpu(), module.allocator.cpu()),
        REFERENCE: (RandomCacher(scenario, RandomConfig()), EqualAllocator(scenario, EqualConfig())),
    }
    e = config.evaluation
    schemes = {name: summarise(evaluate(scenario, *pair, e.final_episodes, e.seed)) for name, pair in pairs.items()}
    return {
        "name": config.name,
        "scenario": scenario.name,
        "episodes": e.final_episodes,
        "seed": e.seed,
        "deadline": scenario.deadline,
        "schemes": schemes,
    }
