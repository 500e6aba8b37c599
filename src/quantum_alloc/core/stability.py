"""Whether the server's clock can be trusted: it agrees with our own, and does not jump.

    unstable   |server - own| > 2 s, or the server's clock advanced by more than 2 s more or less than time went by
    stable     again after 60 s without either

``own`` is this machine's clock and ``elapsed`` one that nobody sets, so that a jump is seen also where server and
governor share a machine. Source: the project's governor, 2.5 and 2.9.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantum_alloc.core.limits import US

SKEW_MAX_US = 2 * US
STEADY_US = 60 * US


@dataclass(frozen=True, slots=True)
class ClockState:
    """What is remembered of the clocks.

    Attributes:
        server_us: the server's, when last seen; None before.
        elapsed_us: the clock that nobody sets, then.
        skew_us: server less own, then.
        unstable_us: that clock when the server's could last not be trusted; None for never.
    """

    server_us: int | None = None
    elapsed_us: int = 0
    skew_us: int = 0
    unstable_us: int | None = None

    @property
    def is_stable(self) -> bool:
        """True where it can be trusted."""
        return self.unstable_us is None or self.elapsed_us - self.unstable_us >= STEADY_US


def observe(state: ClockState, server_us: int, own_us: int, elapsed_us: int) -> ClockState:
    """The state after one more look at the clocks.

    Args:
        state: before.
        server_us: the server's clock, microseconds.
        own_us: this machine's.
        elapsed_us: one that nobody sets.

    >>> seen = observe(ClockState(), 0, 2 * US, 0)
    >>> seen.is_stable, observe(seen, 9 * US, 9 * US, 0).is_stable
    (True, False)
    """
    skew = server_us - own_us
    jump = 0 if state.server_us is None else (server_us - state.server_us) - (elapsed_us - state.elapsed_us)
    bad = abs(skew) > SKEW_MAX_US or abs(jump) > SKEW_MAX_US
    return ClockState(server_us, elapsed_us, skew, elapsed_us if bad else state.unstable_us)
