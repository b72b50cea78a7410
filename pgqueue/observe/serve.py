"""Makes one process visible: `serve_observability(…)` opens its ports for metrics and health, if any are set.

Called by the commands that run a process (worker, scheduler, relay, exporter), around its run.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from pgqueue.core.events import Events
from pgqueue.core.vitals import Vitals
from pgqueue.errors import ConfigurationError
from pgqueue.observe.endpoint import Answer, Endpoint, Page, Request
from pgqueue.observe.health import DatabaseProbe, Health
from pgqueue.settings import Settings

GZIP_FROM_BYTES: Final = 1_400


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a process can be asked now; 0: nowhere, or not yet."""

    _metrics: Endpoint | None = None
    _health: Endpoint | None = None

    @property
    def metrics(self) -> int:
        """The port of /metrics."""
        return 0 if self._metrics is None else self._metrics.port

    @property
    def health(self) -> int:
        """The port of /healthz, /readyz and /startupz."""
        return 0 if self._health is None else self._health.port


@contextlib.contextmanager
def serve_observability(
    settings: Settings,
    events: Events,
    vitals: Vitals,
    *,
    component: str,
    tasks: Iterable[tuple[str, str]] = (),
    collectors: Iterable[Any] = (),
    opened: Callable[[int], None] | None = None,
) -> Iterator[Ports]:
    """Serve metrics and health on the ports of `settings` while the block runs.

    component: `worker`, `scheduler`, … · tasks: (queue, task) of those that it may run · collectors: further
    collectors for /metrics · opened: hears the port, once it is bound: that of the metrics if there is one. The metrics port answers probes too. Raises ConfigurationError if a metrics port is set
    and prometheus-client is not installed; a port that is taken is no error.
    """
    if settings.metrics_port is None and settings.health_port is None:
        yield Ports()
        return
    health = Health(vitals, DatabaseProbe(settings.direct_dsn))
    metrics: Endpoint | None = None
    probes: Endpoint | None = None
    try:
        if settings.metrics_port is not None:
            page = _metrics_page(events, vitals, component, tasks, collectors)
            pages = (page, _health_page(health))
            metrics = Endpoint(
                "metrics", settings.listen_host, settings.metrics_port, pages, events, opened=opened
            )
            metrics.start()
        if settings.health_port is not None:
            if metrics is not None and settings.health_port == settings.metrics_port != 0:
                probes = metrics
            else:
                probes = Endpoint(
                    "health",
                    settings.listen_host,
                    settings.health_port,
                    (_health_page(health),),
                    events,
                    opened=opened if metrics is None else None,
                )
                probes.start()
        yield Ports(metrics, probes)
    finally:
        for endpoint in (metrics, None if probes is metrics else probes):
            if endpoint is not None:
                endpoint.stop()
        health.close()


def _health_page(health: Health) -> Page:
    def page(request: Request) -> Answer | None:
        found = health.answer(request.path)
        return None if found is None else Answer(*found)

    return page


def _metrics_page(
    events: Events,
    vitals: Vitals,
    component: str,
    tasks: Iterable[tuple[str, str]],
    collectors: Iterable[Any],
) -> Page:
    client = need_client()
    ours = importlib.import_module("pgqueue.observe.metrics")
    registry = client.CollectorRegistry()
    counted = ours.ProcessMetrics(component, tasks=tasks, vitals=vitals, events=events)
    events.listen(counted)
    for collector in (counted, *collectors):
        registry.register(collector)
    client.ProcessCollector(registry=registry)
    return metrics_page(registry)


def need_client() -> Any:
    """prometheus_client. Raises ConfigurationError if it is not installed."""
    try:
        return importlib.import_module("prometheus_client")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "metrics: need the package prometheus-client, which is not installed; pip install 'pgqueue-jobs[metrics]'"
        ) from error


def metrics_page(registry: Any) -> Page:
    """`/metrics` of a registry, in the form that the scraper asks for."""
    choose_encoder = importlib.import_module("prometheus_client.exposition").choose_encoder

    def page(request: Request) -> Answer | None:
        if request.path != "/metrics":
            return None
        encode, kind = choose_encoder(request.header("Accept"))
        names = parse_qs(request.query, max_num_fields=100).get("name[]")
        body: bytes = encode(registry.restricted_registry(names) if names else registry)
        if len(body) >= GZIP_FROM_BYTES and "gzip" in request.header("Accept-Encoding"):
            return Answer(200, gzip.compress(body, 1), kind, "gzip")
        return Answer(200, body, kind)

    return page
