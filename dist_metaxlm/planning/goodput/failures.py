"""How often devices fail or slow down, and how long a restart takes, with the published figures behind the defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dist_metaxlm.errors import UserError
from dist_metaxlm.text import pluralize

DEVICE_HOURS = 54 * 24 * 16384 / 419
"""Device hours between two interruptions: 419 unexpected ones in 54 days on 16,384 H100 (Llama 3, arXiv 2407.21783,
section 3.3.4), 50,676."""
RESTART = 900.0
"""Seconds from a failure until training goes on: MegaScale (arXiv 2402.15627) catches up within 15 minutes."""
SLOW_SECONDS = (30.0, 36000.0)
"""Shortest and longest slow period of a device: "tens of seconds to nearly ten hours" (arXiv 2410.12588); log-uniform."""
SLOW_FACTORS = (1.1, 1.5)
"""Least and greatest factor by which a slow device lengthens every step; uniform. An assumption of ours."""
MOST_DAYS = 3650.0
MOST_EVENTS = 10_000
"""Failures and slow periods of one simulated run, on average, that are simulated."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Failures and slow periods of a cluster."""

    devices: int
    device_hours: float = DEVICE_HOURS
    """Device hours between two failures that interrupt training."""
    slow_hours: float = DEVICE_HOURS
    """Device hours between two slow periods; as rare as failures is an assumption of ours. Infinity: none."""
    restart: float = RESTART
    """Seconds from a failure until training goes on from the last checkpoint."""

    @property
    def between_failures(self) -> float:
        """Mean seconds between failures of any device."""
        return 3600 * self.device_hours / self.devices

    @property
    def between_slow(self) -> float:
        """Mean seconds between the starts of slow periods of any device."""
        return 3600 * self.slow_hours / self.devices


def check_fleet(fleet: Fleet, days: float) -> None:
    """Refuse values with which no simulation makes sense.

    Raises:
        UserError: for values that are not positive or absurd, and for a cluster that fails before it has restarted.
    """
    _positive("--simulate", days, MOST_DAYS, "days", "30")
    _positive("--mtbf", fleet.device_hours, 1e9, "device hours between failures", f"{DEVICE_HOURS:.0f}")
    _positive("--restart", fleet.restart, 30 * 86400, "seconds of a restart", f"{RESTART:.0f}")
    if not math.isinf(fleet.slow_hours):
        _positive("--slow_every", fleet.slow_hours, 1e9, "device hours between slow periods", f"{DEVICE_HOURS:.0f}")
    if fleet.between_failures <= fleet.restart:
        raise UserError(
            f"--mtbf {fleet.device_hours:g} is a failure every {fleet.between_failures:,.3g} seconds on "
            f"{pluralize(fleet.devices, 'device', ',')}, less than a restart of {fleet.restart:,.4g} seconds: it "
            "would not train; give a larger --mtbf or a smaller --restart"
        )
    events = days * 86400 * (1 / fleet.between_failures + 1 / fleet.between_slow)
    if events > MOST_EVENTS:
        raise UserError(
            f"--simulate {days:g} with these failures is {events:,.0f} events a run, more than {MOST_EVENTS:,}; "
            "give fewer days or larger --mtbf and --slow_every"
        )


def _positive(option: str, value: float, most: float, meaning: str, example: str) -> None:
    if not (math.isfinite(value) and 0 < value <= most):
        raise UserError(
            f"{option} {value:g} is not a number of {meaning}; give one above 0, up to {most:g}, such as {example}"
        )
