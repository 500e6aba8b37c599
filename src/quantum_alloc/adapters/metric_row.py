"""What a row of a table of metrics is."""

from __future__ import annotations

from dataclasses import dataclass

from quantum_alloc.core.reading import Reason

Labels = tuple[str, ...]
UNUSABLE = tuple(reason.value for reason in Reason)
"""Why an input cannot be used."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric.

    Attributes:
        name: as Prometheus sees it; a counter's ends in ``_total``.
        kind: counter, gauge or histogram.
        help: one sentence.
        labels: label names.
        start: labels that are there at 0 from the start: a counter over a closed set has all of them, so that
            Prometheus sees the first one as an increase.
    """

    name: str
    kind: str
    help: str
    labels: Labels = ()
    start: tuple[Labels, ...] = ()


def each(*values: str) -> tuple[Labels, ...]:
    """One label's values, as labels that are there from the start.

    Args:
        values: of the label.
    """
    return tuple((value,) for value in values)
