"""The world as pure tensor functions; nothing in here knows of reinforcement learning."""

from lightning_t2drl.system.amender import amend_allocation, raw_from_shares
from lightning_t2drl.system.caching import all_caches, amend_cache, fill_in_order
from lightning_t2drl.system.cells import attach, interference, station_sites
from lightning_t2drl.system.demand import stationary_distribution
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.scenario_config import ScenarioConfig, build_scenario, load_scenario
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
