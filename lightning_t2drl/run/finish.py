"""What a run leaves when it has played its frames: final evaluation, figures, W&B artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_t2drl.files import as_json, write_atomically
from lightning_t2drl.loop.checkpoints import in_order
from lightning_t2drl.loop.diagnosis import WHERE, diagnose, signatures, unset
from lightning_t2drl.loop.two_timescale import TwoTimescaleModule
from lightning_t2drl.run.diagnose import curve_of
from lightning_t2drl.run.evaluate import RESULT, compare
from lightning_t2drl.run.figures import draw_map, draw_run
from lightning_t2drl.run.loggers import FrameWandbLogger
from lightning_t2drl.run.resume import SUMMARY
from lightning_t2drl.run.schemas import TrainConfig
from lightning_t2drl.run.tables import improvement, improvement_line, schemes_table, services_table

UNTRAINED = "nothing was learned, so there is nothing to diagnose: play more frames"


def finish_run(
    config: TrainConfig, module: TwoTimescaleModule, directory: Path, loggers: list[Any], console: Console
) -> dict[str, Any]:
    """Final evaluation beside random caching with equal split, figures, W&B artifacts."""
    results = None
    summary: dict[str, Any] = {}
    if config.evaluation.final_episodes:
        e, world = config.evaluation, module.scenario.to("cpu")
        pair = module.cacher.cpu(), module.allocator.cpu()
        results = compare(config.name, world, *pair, e.final_episodes, e.seed, ["rcars"], say=console.print)
        write_atomically(directory / RESULT, as_json(results))
        console.print(schemes_table(results), soft_wrap=False)
        if (by_service := services_table(results, config.name)) is not None:
            console.print(by_service, soft_wrap=False)
        ours, reference = results["schemes"][config.name], results["references"]["rcars"]
        for key, label in (("hit_ratio", "model hit ratio"), ("total_utility", "total utility")):
            means = ours[key]["mean"], reference[key]["mean"]
            summary[f"{key}_improvement_percent"] = improvement(*means)
            console.print(improvement_line(label, *means))
        summary["total_utility"] = ours["total_utility"]["mean"]
        summary["hit_ratio"] = ours["hit_ratio"]["mean"]
        if config.evaluation.diagnosis:
            measured = diagnose(world, *pair, e.seed)
            found = signatures(measured, curve_of(directory), unset(*pair))
            summary["diagnosis"] = measured | {"signatures": found}
            idle = module.gradient_steps == 0 and any(policy.learns for policy in pair)
            for line in [UNTRAINED] if idle else [WHERE, *found] if found else []:
                console.print(line, style="yellow", soft_wrap=True)
    figures = draw_run(directory, results) if config.figures else []
    if config.figures and module.scenario.cells > 1:
        world, pair = module.scenario.to("cpu"), (module.cacher.cpu(), module.allocator.cpu())
        figures.append(draw_map(world, *pair, config.evaluation.seed, directory / "figures" / "map.png"))
    console.print(
        f"results in {directory}: "
        + ", ".join(sorted({SUMMARY, *(p.name for p in directory.iterdir() if p.name[0] != ".")}))
    )
    checkpoint = in_order(directory / "checkpoints")[-1] if config.logger.log_checkpoint else None
    final = {} if results is None else {k: v["mean"] for k, v in results["schemes"][config.name].items()}
    for logger in loggers:
        if isinstance(logger, FrameWandbLogger):
            logger.log_results(module.frame, figures, checkpoint, final)
    return summary
