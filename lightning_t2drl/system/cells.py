"""Several cells: where stations stand, who serves whom, and what cells do to each other's links.

Pure tensor functions, batched over any leading dims [*]; nothing loops over worlds, cells or users.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_t2drl.system.scenario import Scenario

# Axial directions of a ring's six sides, counter-clockwise from its site on the positive x axis.
SIDES = ((-1, 1), (-1, 0), (0, -1), (1, -1), (1, 0), (0, 1))


def axial_sites(count: int) -> Tensor:
    """Axial hexagon coordinates (q, r) of the first sites of a hexagonal spiral, int64 [count, 2].

    The origin first, then ring by ring, each counter-clockwise from its site on the positive x axis.
    """
    sites = [(0, 0)]
    ring = 0
    while len(sites) < count:
        ring += 1
        q, r = ring, 0
        for along_q, along_r in SIDES:
            for _ in range(ring):
                sites.append((q, r))
                q, r = q + along_q, r + along_r
    return torch.tensor(sites[:count])


def station_sites(count: int, spacing: float) -> Tensor:
    """Where stations stand on a hexagonal spiral around the origin, [count, 2] in the unit of `spacing`.

    (0, 0), (d, 0), (d/2, d sqrt(3)/2), ... for a distance d between neighbours; see `axial_sites` for the order.
    """
    q, r = axial_sites(count).double().unbind(-1)
    return (spacing * torch.stack((q + r / 2, r * 3**0.5 / 2), -1)).float()


def reuse_colours(count: int, reuse: int, spiral: bool) -> Tensor:
    """The band that each cell uses, int64 [count]: 0 to reuse - 1.

    With a reuse of 3 on the spiral (q - r) mod 3, so that no neighbours share a band; otherwise the index mod reuse.
    """
    if reuse == 3 and spiral:
        q, r = axial_sites(count).unbind(-1)
        return (q - r) % 3
    return torch.arange(count) % reuse


def attach(long_term_gain: Tensor, serving: Tensor | None, hysteresis_db: float) -> tuple[Tensor, Tensor]:
    """Which station serves each user: the old one, unless another is stronger by more than the hysteresis.

    Args:
        long_term_gain: linear gain of every link without fading, [*, B, U].
        serving: station that served each user before, int64 [*, U], -1 for none; None: nobody was served.
        hysteresis_db: how much stronger the strongest station must be, dB.

    Returns:
        The serving station, int64 [*, U], and whether it is another than before, bool [*, U]. Who was served by
        none takes the strongest (of equals the first), which is no handover.
    """
    best, strongest = long_term_gain.max(-2)
    if serving is None:
        return strongest, torch.zeros_like(strongest, dtype=torch.bool)
    known = serving >= 0
    own = long_term_gain.gather(-2, serving.clamp_min(0).unsqueeze(-2)).squeeze(-2)
    leaves = best > own * 10 ** (hysteresis_db / 10)
    return torch.where(leaves | ~known, strongest, serving), leaves & known


def members(serving: Tensor, cells: int) -> Tensor:
    """Which users each cell serves, bool [*, B, U] from the serving station, int64 [*, U] (-1: none)."""
    return serving.unsqueeze(-2) == torch.arange(cells, device=serving.device).unsqueeze(-1)


def members_first(attached: Tensor) -> Tensor | None:
    """Where each cell's users stand in the table of all users, int64 [*, most users of a cell], filled up with others.

    Several cells share one table, of which each uses a small part; what is done user by user need not be done for
    the rest. None where some cell uses all of it. Asks the device how many there are.

    Args:
        attached: bool [*, U].
    """
    most = max(int(attached.sum(-1).max()), 1) if attached.numel() else attached.shape[-1]
    if most == attached.shape[-1]:
        return None
    return attached.byte().argsort(dim=-1, descending=True, stable=True)[..., :most]


def interference(scenario: Scenario, gain: Tensor, attached: Tensor) -> tuple[Tensor, Tensor]:
    """Power that other active cells of the same band add to a cell's links. A cell is active if it has a user.

    Args:
        gain: linear power gain of every link in this slot, [*, B, U].
        attached: which users each cell serves, bool [*, B, U].

    Returns:
        At the stations, [*, B] in W: the sum over the other cells of the mean over their users of p_user g. At the
        users, [*, B, U] in W: what user u would receive if cell b served it, the sum over the other stations of
        p_bs g.
    """
    colours = scenario.colours
    heard = (colours.unsqueeze(-1) == colours) & ~torch.eye(len(colours), dtype=torch.bool, device=colours.device)
    count = attached.sum(-1, keepdim=True)
    weight = attached / count.clamp_min(1)
    from_cell = torch.matmul(gain, weight.transpose(-1, -2))  # [*, station, other cell]
    uplink = scenario.user_power * (from_cell * heard).sum(-1)
    sends = (count > 0) * gain
    downlink = scenario.station_power * torch.matmul(heard.to(gain.dtype), sends)
    return uplink, downlink


def held_elsewhere(cache: Tensor) -> Tensor:
    """Which models at least one other cell of the world holds, bool [*, B, M] from caches [*, B, M]."""
    return cache.sum(-2, keepdim=True) > cache.long()
