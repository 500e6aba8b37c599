"""Metrics: one table a service, read off decisions; served in Prometheus' text format.

A metric must stand in its service's table (``metric_tables``), which also makes the reference page and is checked by a
test. Counters only grow; gauges with labels are replaced as a whole, so that a symbol that went away leaves no old
value. A ``symbol`` label comes from the validated universe: at most ``max_symbols`` get one, counters of the others go
to ``other`` and their gauges are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quantum_alloc.adapters.input_table import INPUTS, STATES
from quantum_alloc.adapters.metric_row import Labels, Row
from quantum_alloc.adapters.metric_tables import COMMON, TABLES, reference_page

__all__ = ["COMMON", "OTHER", "TABLES", "Labels", "Metrics", "Row", "reference_page"]

OTHER = "other"
DURATIONS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


class Metrics(Collector):
    """The metrics of one service."""

    def __init__(self, service: str, max_symbols: int = 500) -> None:
        """Start at nothing.

        Args:
            service: a name of ``TABLES``.
            max_symbols: symbols that get a label of their own.
        """
        self.service = service
        self._rows = {row.name: row for row in (*COMMON, *TABLES.get(service, ()))}
        self._values: dict[str, dict[Labels, float]] = {
            row.name: (dict.fromkeys(row.start, 0.0) if row.labels else {(): 0.0})
            for row in self._rows.values()
            if row.kind != "histogram"
        }
        for one in INPUTS.get(service, ()):
            self._values["quantum_alloc_inputs_total"].update({(one.name, state): 0.0 for state in STATES})
        self._at_scrape: dict[str, Callable[[], Mapping[Labels, float]]] = {}
        self._max_symbols = max_symbols
        self._symbols: set[str] = set()
        self._registry = CollectorRegistry()
        self._histograms = {
            row.name: Histogram(row.name, row.help, buckets=DURATIONS_S, registry=self._registry)
            for row in self._rows.values()
            if row.kind == "histogram"
        }
        self._registry.register(self)

    def shows(self, symbol: str) -> bool:
        """Whether a symbol has a label of its own; it gets one while there are any left.

        Args:
            symbol: as validated.
        """
        if symbol not in self._symbols:
            if len(self._symbols) >= self._max_symbols:
                return False
            self._symbols.add(symbol)
        return True

    def add(self, name: str, *labels: str, amount: float = 1.0) -> None:
        """Let a counter grow.

        Args:
            name: of the table.
            labels: values, in the table's order.
            amount: at least 0.
        """
        if self._rows[name].labels[:1] == ("symbol",) and not self.shows(labels[0]):
            labels = (OTHER, *labels[1:])
        values = self._values[name]
        values[labels] = values.get(labels, 0.0) + amount

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set one value of a gauge.

        Args:
            name: of the table.
            value: any number.
            labels: values, in the table's order.
        """
        self._values[name][labels] = value

    def replace(self, name: str, values: Mapping[str, float]) -> None:
        """Replace all values of a gauge with one label.

        Args:
            name: of the table.
            values: by label value.
        """
        if self._rows[name].labels == ("symbol",):
            shown = [k for k in values if self.shows(k)]
        else:
            shown = sorted(values)[: self._max_symbols]
        self._values[name] = {(k,): values[k] for k in shown}

    def at_scrape(self, name: str, work_out: Callable[[], Mapping[Labels, float]]) -> None:
        """Work a gauge out whenever it is read.

        Args:
            name: of the table.
            work_out: its values by labels; it must be quick, and safe in another thread.
        """
        self._at_scrape[name] = work_out

    def _read(self, name: str) -> dict[Labels, float]:
        """The values of a metric as they are now; a gauge's symbols are those that get a label of their own."""
        work_out = self._at_scrape.get(name)
        if work_out is None:
            return self._values[name].copy()
        found, labels = dict(work_out()), self._rows[name].labels
        if "symbol" not in labels:
            return found
        at = labels.index("symbol")
        return {k: v for k, v in found.items() if self.shows(k[at])}

    def observe(self, name: str, value: float) -> None:
        """Put a value into a histogram.

        Args:
            name: of the table.
            value: seconds.
        """
        self._histograms[name].observe(value)

    def value(self, name: str, *labels: str) -> float:
        """What a counter or gauge shows now; 0 where nothing was counted.

        Args:
            name: of the table.
            labels: values, in the table's order.
        """
        values = self._read(name) if name in self._at_scrape else self._values[name]
        return values.get(labels, 0.0)

    def values(self, name: str) -> dict[Labels, float]:
        """All values of a gauge, or what a counter has counted, by labels."""
        values = self._read(name)
        return {k: v for k, v in values.items() if v} if self._rows[name].kind == "counter" else values

    def collect(self) -> Iterator[Metric]:
        """The snapshot that Prometheus reads."""
        for name, row in self._rows.items():
            if row.kind == "histogram":
                continue
            family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            metric = family(name, row.help, labels=row.labels)
            for labels, value in self._read(name).items():
                metric.add_metric(labels, value)
            yield metric

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
