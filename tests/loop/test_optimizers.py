"""The lean fused Adam against PyTorch's."""

import copy

import torch
from torch.optim import Adam

from lightning_t2drl.loop.optimizers import FusedAdam


def test_steps_and_state_are_those_of_torch_bit_for_bit():
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    theirs = copy.deepcopy(ours)
    lean, plain = FusedAdam(ours.parameters(), lr=1e-2), Adam(theirs.parameters(), lr=1e-2, fused=True)
    for step in range(6):
        for network, optimizer in ((ours, lean), (theirs, plain)):
            optimizer.zero_grad()
            network(torch.full((5, 3), 1.0 + step)).square().mean().backward()
            if step == 2:  # a parameter without a gradient is left alone
                network[0].bias.grad = None
            optimizer.step()
        if step == 3:  # either goes on from what the other saved
            saved = lean.state_dict()
            lean.load_state_dict(plain.state_dict())
            plain.load_state_dict(saved)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert str(lean.state_dict()) == str(plain.state_dict())
