"""The compiled update against the plain one."""

import pandas as pd
import pytest
import torch

from lightning_t2drl.compiled import CompiledUpdate
from tests.allocators.test_actor_critic import SET, batch_for, make


def updated(compile_it, backend="aot_eager", updates=3, **config):
    """Parameters, targets and Adam's state after some updates on one batch."""
    torch.manual_seed(0)
    allocator = make("d3pg", **config)
    optimizers = allocator.optimizers_by_name()
    batch = batch_for(allocator)
    allocator.seed(1)

    def minimise(name, loss):
        parameters = [p for group in optimizers[name].param_groups for p in group["params"]]
        optimizers[name].zero_grad()
        loss.backward(inputs=parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizers[name].step()

    compiled = CompiledUpdate(allocator, optimizers, clip=0.1, backend=backend)
    for _ in range(updates):
        metrics = compiled(batch) if compile_it else allocator.update(batch, minimise)
    states = [state for optimizer in optimizers.values() for state in optimizer.state.values()]
    moments = [state[key] for state in states for key in ("step", "exp_avg", "exp_avg_sq")]
    return [*allocator.parameters(), *moments, *metrics.values()]


BEST = {**SET, "prediction": "sample", "critics": 2, "discount": 0.0}


@pytest.mark.parametrize("config", [{}, BEST], ids=["mlp", "set"])
def test_equals_the_plain_update(config):
    for ours, plain in zip(updated(True, **config), updated(False, **config), strict=True):
        # By norm: where a gradient is all but 0, Adam divides rounding by rounding.
        assert (ours - plain).norm() <= 1e-3 * plain.norm() + 1e-6


def no_compiler(graph, inputs):
    raise RuntimeError("no working C++ compiler")


def test_runs_and_falls_back_with_one_line_where_there_is_no_compiler(run_train, tmp_path, monkeypatch, capfd):
    for name, backend in (("compiled", "aot_eager"), ("fallen", no_compiler), ("plain", None)):
        monkeypatch.setattr(CompiledUpdate.__init__, "__defaults__", (backend,))
        run_train(*(["compile=true"] if backend else []), output_dir=tmp_path / name)
    assert capfd.readouterr().err.count("compile: not possible here (") == 1
    compiled, fallen, plain = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("compiled", "fallen", "plain"))
    pd.testing.assert_frame_equal(fallen.drop(columns="slots_per_second"), plain.drop(columns="slots_per_second"))
    assert compiled["gradient_steps"].equals(plain["gradient_steps"])
    assert compiled["allocator/critic_loss"].to_numpy() == pytest.approx(
        plain["allocator/critic_loss"].to_numpy(), rel=1e-2, nan_ok=True
    )
