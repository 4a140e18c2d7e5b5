"""The world as pure tensor functions; nothing in here knows of reinforcement learning.

The names are imported when they are first used: `keys` and `catalogue`, by which configs are checked, need no PyTorch.
"""

from typing import TYPE_CHECKING

from lightning_t2drl.lazily import imported_on_use

if TYPE_CHECKING:
    from lightning_t2drl.system.amender import amend_allocation, raw_from_shares
    from lightning_t2drl.system.caching import all_caches, amend_cache, fill_in_order
    from lightning_t2drl.system.cells import attach, interference, station_sites
    from lightning_t2drl.system.demand import stationary_distribution
    from lightning_t2drl.system.keys import ScenarioConfig
    from lightning_t2drl.system.scenario import Scenario
    from lightning_t2drl.system.scenario_config import build_scenario, load_scenario
    from lightning_t2drl.system.serving import serve

__all__ = [
    "Scenario",
    "ScenarioConfig",
    "all_caches",
    "amend_allocation",
    "amend_cache",
    "attach",
    "build_scenario",
    "fill_in_order",
    "interference",
    "load_scenario",
    "raw_from_shares",
    "serve",
    "station_sites",
    "stationary_distribution",
]

_NAMES = {
    "amender": ("amend_allocation", "raw_from_shares"),
    "caching": ("all_caches", "amend_cache", "fill_in_order"),
    "cells": ("attach", "interference", "station_sites"),
    "demand": ("stationary_distribution",),
    "keys": ("ScenarioConfig",),
    "scenario": ("Scenario",),
    "scenario_config": ("build_scenario", "load_scenario"),
    "serving": ("serve",),
}
__getattr__, __dir__ = imported_on_use(
    __name__, {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
)
