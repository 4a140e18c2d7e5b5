"""Whichever kernels multiply, the products are the same, and PyTorch's setting is left as it was."""

import pytest
import torch
from torch.nn import functional as F

from lightning_t2drl.accel.kernels import addmm, fast_products, linear, mm


@pytest.mark.parametrize("size", [(64, 20, 256), (64, 256, 256), (64, 256, 1), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("rows", [1, 64])
def test_products_are_those_of_pytorch(size, rows):
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    n, k, m = size
    x, weight, bias = torch.randn(n, k), torch.randn(m, k), torch.randn(m)
    with fast_products(rows):
        inside = setting.fp32_precision
        ours = [linear(x, weight, bias), addmm(bias, x, weight.t()), mm(x, weight.t())]
        assert setting.fp32_precision == inside
    assert setting.fp32_precision == before
    for product, plus in zip(ours, (bias, bias, 0), strict=True):
        torch.testing.assert_close(product, F.linear(x, weight) + plus, rtol=1e-4, atol=1e-4)
