"""What the tables of Prometheus' rules are written with.

Every service is a job by its CLI name. What the rules keep to:

- A counter's first sample is no increase, so what an alert counts is there at 0 from the start (``Row.start``).
- ``increase`` guesses beyond the samples: a threshold of 10 means about ten. ``> 0`` is exact.
- Shares have counters of the same service above and below; 0 / 0 is NaN, which is above nothing.
- A gauge keeps its last value while cycles fail: what must move is watched by counters.
- Running totals that outlive a restart (``grown``) are compared with what they were an hour ago, not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PREFIX = "QuantumAlloc"
ONE = "job, instance"
WHO = "{{ $labels.job }} ({{ $labels.instance }})"
UNIT = "UNIT"
"""Stands in a remedy for the systemd unit of the job that the alert is about."""


@dataclass(frozen=True, slots=True)
class Recording:
    """An expression whose value is kept under a name.

    Attributes:
        name: level, metric and operation.
        expr: in PromQL.
        help: what it is, one sentence.
    """

    name: str
    expr: str
    help: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        group: what it is about.
        name: without the prefix.
        severity: critical (money or permits at risk), warning (look today), info.
        expr: in PromQL; each of its series is an alert.
        wait: how long it must hold, as Prometheus writes it; 0s for at once.
        summary: what an operator reads first; may name labels.
        when: what it means, with its threshold.
        todo: what to do; may name ``UNIT``.
    """

    group: str
    name: str
    severity: str
    expr: str
    wait: str
    summary: str
    when: str
    todo: str

    @property
    def full_name(self) -> str:
        """Its name in Prometheus."""
        return PREFIX + self.name


def more(metric: str, window: str, than: float = 0, by: str = "") -> str:
    """Counted more often than so many times in a window, summed over what is not named.

    Args:
        metric: a counter, with matchers.
        window: as Prometheus writes it.
        than: so many times are nothing to tell.
        by: labels that are told apart, beside job and instance.
    """
    return f"sum by ({ONE}{', ' if by else ''}{by}) (increase({metric}[{window}])) > {than}"


def grown(metric: str) -> str:
    """A running total above all that it was between two hours and one hour ago.

    Args:
        metric: a counter that begins at its total when its service begins.
    """
    return f"{metric} > (max_over_time({metric}[1h] offset 1h) or 0 * {metric})"


def with_unit(todo: str, names: Mapping[str, str]) -> str:
    """A remedy as Prometheus fills it in: with the unit of the alert's job, or all of them for a job without one.

    Args:
        todo: of an alert.
        names: the unit of each job, without the suffix.

    >>> print(with_unit("`systemctl status UNIT`", {"feed": "quantum-market-feed"}))
    `systemctl status {{ if eq $labels.job "feed" }}quantum-market-feed{{ else }}'quantum-*'{{ end }}`
    """
    cases = "{{ else ".join(f'if eq $labels.job "{job}" }}}}{name}' for job, name in names.items())
    return todo.replace(UNIT, f"{{{{ {cases}{{{{ else }}}}'quantum-*'{{{{ end }}}}")


def any_of(values: Sequence[str]) -> str:
    """A pattern that matches each of some values.

    Args:
        values: plain words.
    """
    return "|".join(values)
