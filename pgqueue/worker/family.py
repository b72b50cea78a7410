"""Health of several worker processes under one parent: it answers for all of them, asking each at a port of its own.

Used by `pgqueue worker --processes N` and `pgqueue all`; touches the loopback network alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Final

from pgqueue.core.vitals import Check, Reading
from pgqueue.settings import Settings
from pgqueue.worker.processes import Processes

ASK_S: Final = 2.0
LOOPBACK: Final = "127.0.0.1"
ANY: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - not bound here, only recognised


@dataclass(frozen=True, slots=True)
class ChildPorts:
    """Where one child serves; None: it does not, 0: on a port that it chooses itself, where nobody can ask it."""

    metrics: int | None
    health: int | None
    host: str = LOOPBACK

    @property
    def options(self) -> list[str]:
        """The same as options of the command line."""
        given = (("--metrics-port", self.metrics), ("--health-port", self.health))
        return [text for name, port in given if port is not None for text in (name, str(port))]


def ports_of(settings: Settings, number: int) -> ChildPorts:
    """Child n serves metrics on the port + n, and health on the parent's port + 1 + n."""
    metrics, health = settings.metrics_port, settings.health_port
    host = LOOPBACK if settings.listen_host in ANY else settings.listen_host
    return ChildPorts(
        metrics + number if metrics else metrics, health + 1 + number if health else health, host
    )


class FamilyVitals:
    """Implements core/vitals.Vitals for the parent: it is ready when every child is."""

    def __init__(self, parent: Processes, ports: Sequence[ChildPorts]) -> None:
        self._parent = parent
        self._ports = ports

    def live(self) -> Sequence[Check]:
        """A child that hangs is told as a failing check of its own; one that died is restarted by the parent."""
        return self._ask("/healthz", waiting_is_fine=True)

    def ready(self) -> Sequence[Check]:
        """Every child runs and is ready."""
        return self._ask("/readyz", waiting_is_fine=False)

    def started(self) -> Sequence[Check]:
        """Every child has begun."""
        return self._ask("/startupz", waiting_is_fine=False)

    def readings(self) -> Sequence[Reading]:
        """The children tell theirs."""
        return ()

    def objectives_s(self) -> Mapping[str, float]:
        """The parent starts no jobs."""
        return {}

    def _ask(self, path: str, *, waiting_is_fine: bool) -> list[Check]:
        checks = []
        for child in self._parent.report():
            ports = self._ports[child.number]
            ok = child.state == "running" or waiting_is_fine
            if child.state == "running" and ports.health:
                ok = _answers(ports.host, ports.health, path, silence=waiting_is_fine)
            checks.append(Check(f"{child.role}_{child.number}", ok))
        return checks


def _answers(host: str, port: int, path: str, *, silence: bool) -> bool:
    """Whether the child says yes. `silence`: what counts if nobody listens there, as while it starts."""
    connection = HTTPConnection(host, port, timeout=ASK_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except ConnectionRefusedError:
        return silence
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
