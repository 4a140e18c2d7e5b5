"""Lightning's own habit: a module from its checkpoint."""

from pathlib import Path

import pytest
import torch

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.loop.checkpoints import load_checkpoint
from lightning_t2drl.loop.two_timescale import TwoTimescaleModule

OLD = Path(__file__).parents[1] / "data" / "version-0.1"


@pytest.mark.parametrize("name", ["sets", "mlps"])
def test_load_from_checkpoint_gives_the_trained_module_of_any_version(name):
    module = TwoTimescaleModule.load_from_checkpoint(OLD / f"{name}.ckpt")
    stored = load_checkpoint(OLD / f"{name}.ckpt")["state_dict"]
    assert (module.frame, module.slots, module.num_envs) == (4, 24, 2)
    assert all(torch.equal(value, stored[key]) for key, value in module.state_dict().items())
    cells = EdgeAIGCEnv(module.scenario, 3).observe()
    assert module.cacher.decide(cells).shape == (3, 1, module.scenario.models)
    assert module.allocator.decide(cells).shape == (3, 1, module.scenario.users, 2)
