"""How good a slot and a cache can be: proven bounds, and allocations and caches close to them."""

from lightning_t2drl.system.bounds.caches import OracleCaches, oracle_caches
from lightning_t2drl.system.bounds.plans import CacheTable, best_held, best_plan, cache_table
from lightning_t2drl.system.bounds.slot import slot_bound

__all__ = ["CacheTable", "OracleCaches", "best_held", "best_plan", "cache_table", "oracle_caches", "slot_bound"]
