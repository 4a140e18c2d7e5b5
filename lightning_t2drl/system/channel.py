"""What the radio link gives users (system model, section 3)."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_t2drl.system.scenario import Scenario


def path_gain(scenario: Scenario, distance: Tensor) -> Tensor:
    """Long-term power gain 10^(-PL/10), PL = 128.1 + 37.6 log10(d_km) dB, d in m clamped to `min_distance`."""
    metres = distance.clamp_min(scenario.min_distance)
    return metres**-3.76 * (10**-12.81 * 1e3**3.76)


def rician_power(rician_factor: float, normal: Tensor) -> Tensor:
    """|h|^2 of unit-mean Rician fading, [*], from standard normal numbers [*, 2] (real, imaginary part)."""
    real, imaginary = (normal * (0.5 / (rician_factor + 1)) ** 0.5).unbind(-1)
    line_of_sight = (rician_factor / (rician_factor + 1)) ** 0.5
    return (real + line_of_sight).square_().addcmul_(imaginary, imaginary)


def spectral_efficiency(scenario: Scenario, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Uplink and downlink log2(1 + p g / (N0 W)) in bit/s/Hz for linear gains [*]."""
    noise = scenario.noise_density * scenario.bandwidth
    up, down = gain * (scenario.user_power / noise), gain * (scenario.station_power / noise)
    return up.log1p_().div_(math.log(2)), down.log1p_().div_(math.log(2))


def access_time(scenario: Scenario, gain: Tensor, input_bits: Tensor, output_bits: Tensor) -> Tensor:
    """a_u = d_in / (W e_up) + d_out / (W e_dn): seconds a user would need with the whole bandwidth, [*]."""
    up, down = spectral_efficiency(scenario, gain)
    return (input_bits / up + output_bits / down).div_(scenario.bandwidth)
