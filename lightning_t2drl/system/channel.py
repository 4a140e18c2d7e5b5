"""The radio channel: path loss, fading, spectral efficiency, access time (docs/concepts/system.md)."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_t2drl.system.noise import number
from lightning_t2drl.system.scenario import Scenario


def path_gain(scenario: Scenario, distance: Tensor) -> Tensor:
    """Long-term power gain 10^(-PL/10), PL = 128.1 + 37.6 log10(d_km) dB, d in m clamped to `min_distance`."""
    metres = distance.clamp_min(scenario.min_distance)
    return (metres**-3.76).mul_(10**-12.81 * 1e3**3.76)


def rician_power(rician_factor: float, normal: Tensor) -> Tensor:
    """|h|^2 of unit-mean Rician fading, [*], from standard normal numbers [*, 2] (real, imaginary part)."""
    scatter, line_of_sight = (0.5 / (rician_factor + 1)) ** 0.5, (rician_factor / (rician_factor + 1)) ** 0.5
    real, imaginary = normal.mul(number(scatter)).unbind(-1)
    return (real + number(line_of_sight)).square_().addcmul_(imaginary, imaginary)


def spectral_efficiency(
    scenario: Scenario,
    gain: Tensor,
    uplink_interference: Tensor | None = None,
    downlink_interference: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Uplink and downlink log2(1 + p g / (N0 W + I)) in bit/s/Hz, W being the cell's part of the bandwidth.

    Args:
        gain: linear power gains [*, U].
        uplink_interference: at the station, W [*]; none when left out.
        downlink_interference: at the users, W [*, U]; none when left out.
    """
    up, down = _nats(scenario, gain, uplink_interference, downlink_interference)
    return up / math.log(2), down / math.log(2)


def _nats(
    scenario: Scenario, gain: Tensor, uplink_interference: Tensor | None, downlink_interference: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Spectral efficiencies in nat/s/Hz."""
    noise = scenario.noise_density * scenario.cell_bandwidth
    if uplink_interference is None:
        up = gain * (scenario.user_power / noise)
    else:  # in units of the noise, far from where float32 ends
        up = gain * (scenario.user_power / noise) / (1 + uplink_interference / noise).unsqueeze(-1)
    down = gain * (scenario.station_power / noise)
    if downlink_interference is not None:
        down = down / (1 + downlink_interference / noise)
    return up.log1p_(), down.log1p_()


def access_time(
    scenario: Scenario,
    gain: Tensor,
    input_bits: Tensor,
    output_bits: Tensor,
    uplink_interference: Tensor | None = None,
    downlink_interference: Tensor | None = None,
) -> Tensor:
    """a_u = d_in / (W e_up) + d_out / (W e_dn): seconds a user would need with the cell's whole bandwidth, [*, U].

    Interference as for `spectral_efficiency`.
    """
    up, down = _nats(scenario, gain, uplink_interference, downlink_interference)
    return (input_bits / up + output_bits / down).mul_(math.log(2) / scenario.cell_bandwidth)
