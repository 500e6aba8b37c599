"""One service in a lane of a proof: its loop, cycle by cycle, and what keeps a case from being worked to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.services.loop import Loop

CYCLES_MAX = 50


class Trouble(Exception):
    """A case could not be worked to its end; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service in a lane, as a process would run it.

    Attributes:
        loop: its loop.
        about: what ``/health`` tells of it.
    """

    loop: Loop[Any, Any, Any]
    about: Mapping[str, Any]

    @property
    def metrics(self) -> Metrics:
        """Its metrics."""
        return self.loop.metrics

    def cycle(self) -> Service:
        """One cycle; of a service that drains a stream as many as there are to do.

        Raises:
            Trouble: it did not end.
        """
        name = self.loop.cycle.name
        for _ in range(CYCLES_MAX):
            if not self.loop.once():
                raise Trouble(f"the cycle of {name} did not end: {self.loop.last_error}")
            if self.loop.cycle.more is None or not self.loop.cycle.more():
                return self
        raise Trouble(f"{name} has more to do after {CYCLES_MAX} cycles")

    def end(self) -> None:
        """Let go of what a process that ends lets go of."""
        self.loop.cycle.close()
