"""The compiled update against the plain one."""

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_t2drl.accel.compiled import CompiledUpdate, inductor
from lightning_t2drl.accel.narrow_products import NARROW, NarrowProducts
from tests.allocators.test_actor_critic import SET, batch_for, make


def as_traced(graph, inputs):
    return graph


def updated(compile_it, backend=as_traced, updates=3, **config):
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


def equal(ours, theirs):
    # By norm: where a gradient is all but 0, Adam divides rounding by rounding.
    return all((a - b).norm() <= 1e-3 * b.norm() + 1e-6 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("config", [{}, BEST], ids=["mlp", "set"])
def test_the_graph_equals_the_plain_update(config):
    assert equal(updated(True, **config), updated(False, **config))


def test_machine_code_equals_the_plain_update():
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler")
    small = {
        "actor": {"_target_": "lightning_t2drl.networks.mlp.MLPTrunk", "hidden": 40, "layers": 1},
        "critic": {"_target_": "lightning_t2drl.networks.mlp.MLPCritic", "hidden": 40, "layers": 1},
        "denoising_steps": 2,
    }
    assert equal(updated(True, backend=inductor, **small), updated(False, **small))


matrices = st.tuples(*[st.sampled_from([1, 2, 20, 32, 33, 64, 70])] * 3, st.booleans(), st.booleans(), st.booleans())


@given(matrices)
def test_narrow_products_stay_what_they_are(shape):
    m, k, n, a_transposed, b_transposed, biased = shape
    a = torch.randn(k, m).t() if a_transposed else torch.randn(m, k)
    b = torch.randn(n, k).t() if b_transposed else torch.randn(k, n)
    bias = torch.randn(n)

    def product(a, b, bias):
        return torch.addmm(bias, a, b) if biased else a @ b

    graph = make_fx(product, tracing_mode="fake")(a, b, bias)
    NarrowProducts()(graph.graph)
    graph.recompile()
    torch.testing.assert_close(graph(a, b, bias), product(a, b, bias), rtol=1e-4, atol=1e-4)
    left = [node for node in graph.graph.nodes if "mm" in str(node.target)]
    assert len(left) == (min(m, k, n) == 1 or min(m, k, n) > NARROW or (a.stride(1) != 1 and k > 64))


def no_compiler(graph, inputs):
    raise RuntimeError("no working C++ compiler")


def test_runs_and_falls_back_with_one_line_where_there_is_no_compiler(run_train, tmp_path, monkeypatch, capfd):
    for name, backend in (("compiled", as_traced), ("fallen", no_compiler), ("plain", None)):
        monkeypatch.setattr(CompiledUpdate.__init__, "__defaults__", (backend,))
        run_train(*(["compile=true"] if backend else []), output_dir=tmp_path / name)
    assert capfd.readouterr().err.count("compile: not possible here (") == 1
    compiled, fallen, plain = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("compiled", "fallen", "plain"))
    pd.testing.assert_frame_equal(fallen.drop(columns="slots_per_second"), plain.drop(columns="slots_per_second"))
    assert compiled["gradient_steps"].equals(plain["gradient_steps"])
    assert compiled["allocator/critic_loss"].to_numpy() == pytest.approx(
        plain["allocator/critic_loss"].to_numpy(), rel=1e-2, nan_ok=True
    )
