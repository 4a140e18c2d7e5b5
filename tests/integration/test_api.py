"""The public names: what the command line does, from Python."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

import lightning_t2drl
from lightning_t2drl import EdgeAIGCEnv, UserError, evaluate, load_policy, load_scenario, train
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.building import build_policies
from lightning_t2drl.registry import config_of
from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.overrides import as_override
from tests.conftest import TINY


class Nothing(Allocator):
    @dataclasses.dataclass
    class Config:
        pass

    def __init__(self, scenario, config):
        super().__init__(scenario, config)


class Mine:
    @dataclasses.dataclass
    class Config:
        width: int = 1


def test_a_config_of_ones_own_need_not_name_its_class():
    assert config_of(Mine, {"_target_": "mine.Mine", "width": 3}, "allocator") == Mine.Config(3)
    with pytest.raises(UserError, match=r"allocator\.widht: no such key"):
        config_of(Mine, {"_target_": "mine.Mine", "widht": 3}, "allocator")


def test_an_allocator_that_decides_nothing_is_refused():
    config = compose("train", ["allocator=equal", "cacher=random"]).config
    with pytest.raises(UserError, match=r"^allocator\._target_: tests\..*Nothing has neither `decide` nor `act`"):
        build_policies(config.env, config.cacher, {"_target_": f"{__name__}.Nothing"})


def test_numbers_of_numpy_are_numbers():
    assert as_override("env.alpha", np.float64(0.3)) == ["env.alpha=0.3"]
    assert as_override("env.input_mb", np.array([5, 6.5])) == ["env.input_mb=[5.0,6.5]"]
    assert as_override("env.users", torch.tensor(3)) == ["env.users=3"]


def test_train_evaluate_and_decide(tmp_path):
    training = train(*TINY, "evaluation.final_episodes=2", env={"users": 5}, output_dir=tmp_path / "it's a run")
    assert training.metrics["frame"].tolist() == [1, 2, 3, 4, 5, 6] and len(training.evaluations) == 4
    assert set(training.schemes["scheme"]) == {"t2drl", "rcars"} and training.name == "t2drl"
    again = evaluate(
        checkpoint=training.output_dir, episodes=2, references=["rcars"], progress_bar=False, output_dir=tmp_path / "e"
    )
    columns = ["scheme", "metric", "mean"]
    assert again.schemes[columns].round(4).equals(training.schemes[columns].round(4))
    policy = load_policy(training.output_dir, env__users=7)
    assert (policy.name, policy.scenario.users) == ("t2drl", 7)
    env = EdgeAIGCEnv(policy.scenario, num_envs=3)
    cells = env.reset()["cells"]
    action = policy.decide(cells, episode_start=True)
    assert action["cache"].shape == (3, 1, 10) and action["allocation"].shape == (3, 1, 7, 2)
    held = cells.clone().set("cache", action["cache"])
    assert torch.equal(policy.decide(held, frame_start=False)["cache"], action["cache"])
    with pytest.raises(UserError, match=r"^cells: no observation of cells; hand over"):
        policy.decide({"request": [0]})
    with pytest.raises(UserError, match=r"^cells: load, gain missing; hand over"):
        policy.decide(cells.exclude("gain", "load"))
    with pytest.raises(UserError, match=r"^situation: None is neither a JSON file nor a mapping of popularity, "):
        policy.explain(None)
    with pytest.raises(UserError, match=r"^cells: of 12 models, but this policy decides on 10$"):
        policy.decide(EdgeAIGCEnv(load_scenario("drift"), num_envs=np.int64(2)).reset()["cells"])
    for mistake, line in (
        (("paper",), "scenario: 'paper' is no Scenario"),
        ((policy.scenario, 0), "num_envs: 0 is not"),
    ):
        with pytest.raises(UserError, match=f"^{line}"):
            EdgeAIGCEnv(*mistake)


def test_mistakes_raise_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"env\.user: no such key; the nearest is env\.users"):
        train(env={"user": 3})
    with pytest.raises(UserError, match=r'^3: no word of the command line, such as "experiment=quickstart"$'):
        train(3)
    with pytest.raises(UserError, match=r"^trust: 'os'; it must be a list of modules, as in trust=\['os'\]$"):
        load_policy("nowhere", trust="os")
    with pytest.raises(UserError, match=r"nowhere: no such checkpoint"):
        load_policy("nowhere")
    assert list(tmp_path.iterdir()) == []


def test_neither_a_controller_nor_the_check_of_a_config_needs_torch():
    code = """
import sys, lightning_t2drl
from lightning_t2drl.deploy import Controller
from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.sweep import sweep
compose("train", ["experiment=t2drl", "env=cells7", "env.catalogue=mixed12"])
assert not {"torch", "pandas", "matplotlib"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(lightning_t2drl.__all__) <= set(dir(lightning_t2drl))
