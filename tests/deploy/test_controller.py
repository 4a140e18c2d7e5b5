"""What the controller makes of a network's shares, without a network."""

import json

import numpy as np
import pytest

from lightning_t2drl.deploy import controller
from lightning_t2drl.system import load_scenario


@pytest.mark.parametrize("name", ["paper", "mixed"])
def test_a_share_of_the_budget_buys_steps_by_what_they_cost(name, tmp_path, monkeypatch):
    scenario, share = load_scenario(name), np.array([[[0.4, 0.1], [0.3, 0.2], [0.3, 0.3]]], np.float32)
    facts = {"format": 1, "scenario": scenario.as_dict(), "users": None, "decision_samples": 1, "popularity": "state"}
    (tmp_path / controller.POLICY).write_text(json.dumps(facts | {"cacher": {"constant": [False] * scenario.models}}))
    network = type("Network", (), {"run": lambda self, outputs, feeds: [share]})()
    monkeypatch.setattr(controller, "_session", lambda path: network)
    cache = [model in (0, 4) for model in range(scenario.models)]
    payloads = {"input_bits": [1e6] * 3, "output_bits": [1e6] * 3, "gain": [1e-9] * 3}
    decision = controller.Controller(tmp_path).allocate([0, 4, 2], cache=cache, **payloads)
    cost = np.broadcast_to(scenario.as_dict()["step_cost"], scenario.models)[[0, 4, 2]]
    np.testing.assert_allclose(decision.steps * cost, share[0, :, 1] * scenario.step_budget, rtol=1e-6)
