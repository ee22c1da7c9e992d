"""The router's Prometheus series, besides those of every gRPC server. Labels are base models, whose number is small."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from softprompt.routing.links import Link

PREFIX = "softprompt_router"
STATES = ("serving", "connecting", "unreachable")
"""By a link's rank."""


class RouterMetrics(Collector):
    """Attempts as they happen; replicas and calls at the time of a scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._links: Sequence[Link] = ()
        self._states: Mapping[tuple[str, str], int] = {}
        self.waiting: Callable[[], Mapping[str, int]] = dict
        """The calls that wait for the first replica, by base model. The thread of scrapes calls it."""
        about = "Calls passed on to a replica, by how it answered: OK with its first message."
        self.attempts = Counter(f"{PREFIX}_attempts", about, ["base_model", "grpc_code"], registry=registry)
        self.revision = Gauge(f"{PREFIX}_store_revision", "Store revision that the router has read.", registry=registry)
        contact = f"{PREFIX}_store_last_contact_timestamp_seconds"
        self.last_contact = Gauge(contact, "When the records were last read.", registry=registry)
        self.ready = Gauge(f"{PREFIX}_ready", "1 while the router is ready for calls.", registry=registry)
        registry.register(self)

    def records_read(self, revision: int, links: Sequence[Link]) -> None:
        """Record the states of all links after a read of the store; another thread serves scrapes."""
        self.revision.set(revision)
        self.last_contact.set_to_current_time()
        states = Count[tuple[str, str]]()
        for link in links:
            states.update({(link.replica.base_model, state): state == STATES[link.rank] for state in STATES})
        self._links, self._states = links, states

    def observe(self, base_model: str, code: str) -> None:
        """Count an attempt."""
        self.attempts.labels(base_model, code).inc()

    def collect(self) -> Iterator[Metric]:
        """The replicas and the calls in flight."""
        replicas = GaugeMetricFamily(f"{PREFIX}_replicas", "Replicas by state.", labels=["base_model", "state"])
        in_flight = GaugeMetricFamily(f"{PREFIX}_in_flight", "Calls that replicas answer now.", labels=["base_model"])
        calls = Count[str]()
        for link in self._links:
            calls[link.replica.base_model] += link.in_flight
        for labels, number in sorted(self._states.items()):
            replicas.add_metric(labels, number)
        for base_model, number in sorted(calls.items()):
            in_flight.add_metric([base_model], number)
        about = "Calls that wait for the first replica of a base model."
        waiting = GaugeMetricFamily(f"{PREFIX}_waiting", about, labels=["base_model"])
        for base_model, number in sorted(self.waiting().items()):
            waiting.add_metric([base_model], number)
        yield from (replicas, in_flight, waiting)
