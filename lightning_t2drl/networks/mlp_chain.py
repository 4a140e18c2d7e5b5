"""How the gradient runs back through the reverse chain of an MLP denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_t2drl.accel.kernels import addmm, mm
from lightning_t2drl.networks.activations import ACTIVATIONS, GRADIENTS
from lightning_t2drl.networks.actors.diffusion import reverse_chain

aten = torch.ops.aten


class MLPChain(torch.autograd.Function):
    """The reverse chain of an MLP denoiser as one node of autograd.

    Autograd itself would take layer after layer of step after step, with a product and a sum for each weight in each
    of them. Here a weight's gradient is one product over the rows of all steps.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        x: Tensor,
        added: Sequence[Tensor],
        coefficients: list[tuple[float, float]],
        activation_name: str,
        from_action: Tensor,
        *layers: Tensor,
    ) -> Tensor:
        """x_0 [n, A] from x_I.

        Args:
            hidden: what state and step contribute to the first layer, [I, n, H].
            x, added, coefficients: see `reverse_chain`; [n, A].
            activation_name: one of `ACTIVATIONS`.
            from_action: weight of the noisy action, [H, A].
            layers: weight and bias of each later layer.
        """
        activate, hidden_by_step, first = ACTIVATIONS[activation_name], hidden.unbind(), from_action.t()
        later = [(bias, weight.t()) for weight, bias in zip(layers[::2], layers[1::2], strict=True)]
        tape: list[tuple[Tensor, list[Tensor], list[Tensor], Tensor]] = []

        def denoise(x: Tensor, step: int) -> Tensor:
            outputs, inputs = [addmm(hidden_by_step[step], x, first)], []
            for bias, weight in later:
                inputs.append(activate(outputs[-1]))
                outputs.append(addmm(bias, inputs[-1], weight))
            prediction = outputs.pop().tanh()
            tape.append((x, outputs, inputs, prediction))
            return prediction

        ctx.save_for_backward(from_action, *layers[::2])
        ctx.tape, ctx.coefficients, ctx.gradient_of = tape, coefficients, GRADIENTS[activation_name]
        return reverse_chain(denoise, x, added, coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from_action, *weights = ctx.saved_tensors
        tape = ctx.tape[::-1]  # by step: the last one taken is step 0
        at_outputs = []  # by step, the gradients at what its layers give out, last layer first
        for (_, outputs, _, prediction), (on_x, on_prediction) in zip(tape, ctx.coefficients, strict=True):
            at = [aten.tanh_backward(gradient * on_prediction, prediction)]
            for weight, output in zip(weights[::-1], outputs[::-1], strict=True):
                at.append(ctx.gradient_of(mm(at[-1], weight), output))
            at_outputs.append(at)
            if len(at_outputs) < len(tape):  # nobody asks for the gradient at x_I
                gradient = torch.add(mm(at[-1], from_action), gradient, alpha=on_x)
        *at_later, at_first = (torch.cat(of_layer) for of_layer in zip(*at_outputs, strict=True))
        layers = []
        for at, *inputs in zip(at_later[::-1], *(inputs for _, _, inputs, _ in tape), strict=True):
            layers += [mm(at.t(), torch.cat(inputs)), at.sum(0)]
        hidden = at_first.view(len(tape), *gradient.shape[:-1], -1)
        return hidden, None, None, None, None, mm(at_first.t(), torch.cat([x for x, *_ in tape])), *layers
