"""A pass of the compiler for products of matrices too narrow for a matrix library.

An actor's noisy action and output are some 20 wide. For such a product of few rows a library takes longer to choose its
kernel than to multiply. Loops that the compiler writes itself need not be chosen, and may take in what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

aten = torch.ops.aten

NARROW = 32  # at most as many columns, or terms in a sum: beyond, a library's kernels win
FEW_ROWS = 64  # of a batch whose weight gradient, a sum over the rows, is worth it

Call = Callable[..., fx.Node]


class NarrowProducts(CustomGraphPass):
    """Replaces narrow `mm` and `addmm` of a graph by a product and a sum, which the compiler turns into loops."""

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.op != "call_function" or node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
                continue
            *bias, a, b = node.args
            if not worthwhile(a.meta["val"], b.meta["val"]):
                continue
            with graph.inserting_before(node):
                call = _caller(graph)
                out = _as_loops(call, a, b)
                if bias:
                    out = call(aten.add.Tensor, out, bias[0])
            node.replace_all_uses_with(out)
            graph.erase_node(node)


def worthwhile(a: Tensor, b: Tensor) -> bool:
    """Whether loops are faster than a library for a @ b, [m, k] @ [k, n]."""
    (m, k), n = a.shape, b.shape[1]
    return 1 < min(m, k, n) <= NARROW and (k <= FEW_ROWS or _along_rows(a))


def _along_rows(x: Tensor) -> bool:
    return x.stride(1) == 1


def _caller(graph: fx.Graph) -> Call:
    """A function that adds a call to `graph` at the point of insertion, with a tensor like its result as metadata."""

    def call(op: Any, *args: Any) -> fx.Node:
        node = graph.call_function(op, args)
        node.meta["val"] = op(*[arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args])
        return node

    return call


def _as_loops(call: Call, a: fx.Node, b: fx.Node) -> fx.Node:
    """[m, n] from [m, k] and [k, n], such that the innermost loop runs along rows of memory."""
    x, y = a.meta["val"], b.meta["val"]
    (m, k), n = x.shape, y.shape[1]
    if n <= NARROW < m and not _along_rows(x):  # (b^T a^T)^T: along m instead of n
        return _transposed(call, _as_loops(call, _transposed(call, b), _transposed(call, a)))
    if k > NARROW and _along_rows(x) and _along_rows(y.t()):  # along k
        left = call(aten.unsqueeze.default, _laid_out(call, a, (k, 1)), 1)
        right = call(aten.unsqueeze.default, _laid_out(call, _transposed(call, b), (k, 1)), 0)
        return call(aten.sum.dim_IntList, call(aten.mul.Tensor, left, right), [2])
    left = call(aten.unsqueeze.default, _laid_out(call, a, x.stride()), 2)
    right = call(aten.unsqueeze.default, _laid_out(call, b, (n, 1)), 0)
    return call(aten.sum.dim_IntList, call(aten.mul.Tensor, left, right), [1])


def _transposed(call: Call, x: fx.Node) -> fx.Node:
    return call(aten.permute.default, x, [1, 0])


def _laid_out(call: Call, x: fx.Node, strides: tuple[int, ...]) -> fx.Node:
    """`x` in memory, in this layout: otherwise what computes it would be computed anew for every term."""
    return call(torch.ops.prims.inductor_force_stride_order.default, x, list(strides))
