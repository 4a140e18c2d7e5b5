"""On a GPU everything is as on the CPU but for rounding and speed; skipped where there is none."""

import json
import warnings
from collections import Counter

import pytest
import torch

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.envs.worlds import play_slot
from lightning_t2drl.loop.two_timescale import TwoTimescaleModule
from lightning_t2drl.system import load_scenario
from lightning_t2drl.system.bounds import slot_bound
from lightning_t2drl.system.world import draw_noise
from tests.worlds import slots_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = "trainer=gpu"


@pytest.mark.parametrize("name", ["paper", "drift", "loads", "cells3", "cells7_cooperative", "mixed"])
def test_slots_on_the_gpu_are_those_on_the_cpu(name):
    """The same worlds, allocations and noise on both: the same next worlds, and the same utility of every user."""
    scenario, worlds = load_scenario(name), 16
    env = EdgeAIGCEnv(scenario, worlds, seed=0)
    env.latch(torch.rand(worlds, scenario.cells, scenario.models) < 0.5)
    on_cpu, on_gpu = [], []
    state, memory = env.worlds.state, env.worlds.memory
    there = [{key: value.to("cuda") for key, value in part.items()} for part in (state, memory)]
    for _ in range(3):
        raw = 2 * torch.rand(worlds, scenario.cells, scenario.users, 2) - 1
        noise = draw_noise(scenario, worlds, env.generator)
        state, memory, served, reward = play_slot(scenario, state, memory, raw, noise)
        on_cpu.append({**state, **memory, **served, **reward})
        *there, served, reward = play_slot(scenario.to("cuda"), *there, raw.to("cuda"), noise.to("cuda"))
        on_gpu.append({**there[0], **there[1], **served, **reward})
    for here, other in zip(on_cpu, on_gpu, strict=True):
        for key, value in here.items():
            torch.testing.assert_close(other[key].cpu(), value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", ["paper", "mixed"])
def test_the_bound_on_the_gpu_is_that_on_the_cpu(name):
    scenario = load_scenario(name)
    slots = slots_of(scenario, 64)
    here = slot_bound(scenario, **slots)
    other = slot_bound(scenario.to("cuda"), **{key: value.to("cuda") for key, value in slots.items()}).cpu()
    torch.testing.assert_close(other["bound"], here["bound"], rtol=1e-5, atol=1e-5)
    assert bool((other["achieved"] <= other["bound"] + 1e-6).all())
    assert (other["achieved"] - here["achieved"]).abs().median() < 1e-5


@pytest.mark.parametrize("words", [[], ["allocator=ddpg", "trainer.precision=bf16-mixed"],
                                   ["experiment=t2drl_paper", "trainer.precision=16-mixed"], ["env=cells3"]], ids=str)  # fmt: skip
def test_a_run_on_the_gpu_resumes_bit_for_bit_and_evaluates_on_the_cpu(
    words, run_train, run_evaluate, same_run, tmp_path
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = run_train(*words, GPU, output_dir=whole)
    run_train(*words, GPU, "frames=3", "schedule_frames=6", output_dir=cut)
    run_train(*words, GPU, "resume=auto", "schedule_frames=6", output_dir=cut)
    same_run(whole, cut)
    found = run_evaluate(f"checkpoint={whole}/checkpoints/last", "episodes=2")
    assert json.dumps(found) and summary["frame"] == 6


def test_compiled_losses_and_worlds_run_on_the_gpu(run_train, tmp_path):
    run_train(GPU, "compile=true", output_dir=tmp_path / "run")
    env = EdgeAIGCEnv(load_scenario("paper"), 8, 0, "cuda")
    env.compile()
    raw = torch.zeros(8, 1, 10, 2, device="cuda")
    assert bool(env.play(raw)["reward", "slot"].isfinite().all())


def waits_of_a_frame(run_train, monkeypatch, directory, *words):
    """How often the last frame of a tiny run waited for the GPU, by the line of Python that did."""
    play, found = TwoTimescaleModule._play_frame, []

    def watched(self):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                play(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append(Counter(f"{w.filename.split('site-packages/')[-1]}:{w.lineno}" for w in seen))

    monkeypatch.setattr(TwoTimescaleModule, "_play_frame", watched)
    run_train(GPU, *words, "env.slots_per_frame=10", output_dir=directory)
    return found[-1]


@pytest.mark.parametrize("words", [[], ["allocator=ddpg", "cacher=popular"], ["experiment=t2drl_paper"]], ids=str)
def test_slots_and_updates_do_not_wait_for_the_gpu(words, run_train, monkeypatch, tmp_path):
    """Ten slots with their updates and a frame's: only the frame's own checks ask the GPU for anything."""
    waits = waits_of_a_frame(run_train, monkeypatch, tmp_path / "run", *words)
    print(dict(waits))
    assert sum(waits.values()) < 10, waits
