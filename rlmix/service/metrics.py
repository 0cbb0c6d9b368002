"""What the service says of itself to a monitor, as Prometheus reads it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import Scope

from rlmix.service.records import Origin
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.sql import now

TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of what `text` returns."""

# Of a decision, from half a millisecond on; of everything else, up to what a client waits.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


@final
class Metrics:
    """Counts of one service. What the database knows is read when somebody asks, so a restart does not forget it.

    Args:
        storage: of the service.
        since: when the service began to listen, microseconds since 1970.
    """

    def __init__(self, storage: AbstractStorage, since: int) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("rlmix_requests", "Requests.", labels, registry=self._registry)
        self._seconds = Histogram(
            "rlmix_request_seconds", "Time to answer.", ("route",), buckets=_SECONDS, registry=self._registry
        )
        self._decisions = Counter(
            "rlmix_decisions", "Decisions that were stored, by who took them.", ("origin",), registry=self._registry
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_Stored(storage, since))

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request; addresses that no route has are one."""
        route = getattr(scope.get("route"), "path_format", "none")
        # A method is what a client makes up, too.
        method = scope["method"] if scope["method"] in ("GET", "PUT", "POST") else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def decided(self, origin: Origin) -> None:
        """Count a decision that is new."""
        self._decisions.labels(origin).inc()

    def text(self) -> bytes:
        """Return everything.

        Raises:
            StorageError: the database cannot answer.
        """
        return generate_latest(self._registry)


@final
class _Stored(Collector):
    """What the database knows."""

    def __init__(self, storage: AbstractStorage, since: int) -> None:
        self._storage, self._since = storage, since

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Name what there is, without asking the database."""
        return iter(self._families().values())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read everything."""
        families = self._families()
        families["info"].add_metric([importlib.metadata.version("rlmix")], 1)
        families["queue"].add_metric([], self._storage.waiting())
        for phase, count in self._storage.census(now(), self._since).items():
            families["runs"].add_metric([phase], count)
        for project in self._storage.projects():
            for policy in self._storage.policies(project):
                for alias in self._storage.aliases(project, policy):
                    families["aliases"].add_metric([project, policy, alias.name], alias.version.number)
        return iter(families.values())

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        return {
            "info": GaugeMetricFamily("rlmix_info", "The rlmix that answers.", labels=["version"]),
            "queue": GaugeMetricFamily("rlmix_writer_queue", "Writes that wait for the one that writes.", labels=[]),
            "runs": GaugeMetricFamily("rlmix_runs", "Runs by phase.", labels=["phase"]),
            "aliases": GaugeMetricFamily(
                "rlmix_alias_version",
                "Number of the version that an alias leads to.",
                labels=["project", "policy", "alias"],
            ),
        }
