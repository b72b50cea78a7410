"""The App: an application's tasks and settings, and the one place that knows all rooms."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, overload

from pgqueue.app_outbox import OutboxFace
from pgqueue.control.alerts import Alerts
from pgqueue.control.dead_letters import DeadLetters
from pgqueue.control.desk import Desk
from pgqueue.control.jobs import Jobs
from pgqueue.control.queues import Queues
from pgqueue.control.rows import Explanation, TimelineEntry
from pgqueue.control.schedules import Schedules
from pgqueue.core.events import Events
from pgqueue.core.names import check_queue
from pgqueue.core.registry import Registry
from pgqueue.core.retry import Retry
from pgqueue.core.schedule import ScheduleDefinition, ScheduleOptions, define_schedule
from pgqueue.core.signature import check_call
from pgqueue.errors import ConfigurationError, DuplicateTask, InvalidArguments
from pgqueue.producer.enqueue import Enqueued, enqueue, enqueue_async
from pgqueue.producer.plan import JobOptions, TaskDefaults, plan_one
from pgqueue.scheduler.runtime import Scheduler
from pgqueue.settings import Settings, load_settings
from pgqueue.storage.binding import Where
from pgqueue.storage.own_pool import OwnConnections
from pgqueue.task import Task, told_one
from pgqueue.tracing import producing
from pgqueue.version import VERSION
from pgqueue.worker.context import AsyncJobContext, JobContext
from pgqueue.worker.runtime import PoolPlan, Worker

P = ParamSpec("P")
R = TypeVar("R")


class App(OutboxFace):
    """An application's registry of tasks. Making one connects to nothing and reads no file until it must.

    dsn: libpq URI or keywords; default PGQUEUE_DATABASE_URL, DATABASE_URL, then libpq's PG* variables.
    retry: the policy of tasks that have none of their own. settings: any field of docs/reference/settings.md.
    """

    def __init__(self, dsn: str | None = None, *, retry: Retry | None = None, **settings: Any) -> None:
        self._overrides = {**({} if dsn is None else {"database_url": dsn}), **settings}
        self._retry = retry
        self._tasks: dict[str, Task[..., Any]] = {}
        self.events = Events()

    @cached_property
    def settings(self) -> Settings:
        """The settings, read at first use. Raises ConfigurationError with every problem at once."""
        return load_settings(**self._overrides)

    @cached_property
    def own(self) -> OwnConnections:
        """Connections for enqueues that name none."""
        return OwnConnections(self.settings.database_url, connect_timeout_s=self.settings.connect_timeout_s)

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The registered tasks by name, read-only."""
        return MappingProxyType(self._tasks)

    @overload
    def task(self, function: Callable[Concatenate[JobContext, P], R], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[Concatenate[AsyncJobContext, P], R], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 5,
        retry: Retry | None = None,
        timeout: str | float | None = None,
        batch: int = 0,
        batch_key: str | None = None,
        batch_window: str | float | timedelta | None = None,
        group_commit: int = 0,
        audit: str | None = None,
        unique: bool | str | Sequence[str] | None = None,
        unique_for: str | float | timedelta | None = None,
        debounce: str | float | timedelta | None = None,
        key_ttl: str | float | timedelta | None = None,
        key_scope: str | None = None,
        on_conflict: str | None = None,
    ) -> _Decorator: ...

    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function as a task.

        name: default `module.function` · queue: default "default" · priority: 0 (first) to 9, default 5 ·
        retry: its Retry policy · timeout: how long one attempt may take ("30s") ·
        batch: hand up to so many jobs to one call, `f(ctx, jobs)`, in one transaction; batch_key: the argument
        whose value keeps jobs apart · batch_window: collect jobs so long ("5m") and hand those of a window and key to
        one call · group_commit: let up to so many jobs share a transaction, a savepoint each ·
        audit: "full" writes every move of its jobs to job_transitions, default the setting `audit` ·
        unique: arguments (("ride_id",), or True: all) whose values make the job's idempotency key; unique_for: how long
        it is held, instead of while the job lives; debounce: start so long after the last call, with its arguments ·
        key_ttl, key_scope, on_conflict: as in `using`.
        The function's first parameter is the context if it is called `ctx` or annotated JobContext.
        Raises DuplicateTask for a name that is taken, ConfigurationError for a signature that cannot work.
        """
        if function is not None:
            return self._register(Task(self, function))
        return lambda found: self._register(Task(self, found, **options))

    def enqueue(
        self, task: str, args: Mapping[str, Any] | None = None, *, where: Where = None, **options: Any
    ) -> Enqueued:
        """Enqueue by name, for a task registered elsewhere: the database knows its queue once a worker started with it."""
        with producing(options.get("queue"), task) as span:
            return told_one(
                self.events, span, enqueue(where, self._plan_by_name(task, args, options), own=self.own)
            )

    async def enqueue_async(
        self, task: str, args: Mapping[str, Any] | None = None, *, where: Where = None, **options: Any
    ) -> Enqueued:
        """As `enqueue`, on an async connection or session."""
        with producing(options.get("queue"), task) as span:
            made = await enqueue_async(where, self._plan_by_name(task, args, options), own=self.own)
            return told_one(self.events, span, made)

    def policy(self, task: str, queue: str) -> Retry:
        """The retry policy of a task's jobs in a queue.

        The file's entry for the task, the code's, the file's entry for the queue, the App's, the file's default,
        the built-in default: the first that exists. So payments and mails can be tuned without a deploy.
        """
        key = (task, queue)
        found = self._policies.get(key)
        if found is None:
            found = self._policies[key] = self._find_policy(task, queue)
        return found

    def worker(
        self,
        queues: str | Sequence[str] | None = None,
        *,
        concurrency: int | None = None,
        drain: bool = False,
        app_reference: str | None = None,
        suspects_only: bool = False,
    ) -> Worker:
        """A worker for `queues` ("critical:8,default:4" or names); default: every queue the tasks name, and "default"."""
        pools = plan_pools(queues, concurrency or self.settings.concurrency, self._tasks.values())
        return Worker(
            self.registry(),
            self.settings,
            pools,
            version=VERSION,
            events=self.events,
            drain=drain,
            app_reference=app_reference,
            suspects_only=suspects_only,
        )

    def registry(self) -> Registry:
        """The tasks as a worker knows them."""
        return Registry({name: task.registered() for name, task in self._tasks.items()}, self.policy)

    def use(self, **settings: Any) -> None:
        """Let `settings` win over the App's own, as the options of a command line do; before they are first used."""
        self._overrides |= settings
        self.__dict__.pop("settings", None)

    @cached_property
    def jobs(self) -> Jobs:
        """Questions and deeds about jobs."""
        return Jobs(self._desk)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """Dead letters: list, group, redrive, discard."""
        return DeadLetters(self._desk)

    @cached_property
    def queues(self) -> Queues:
        """Queues: list, pause, resume; and who works on them."""
        return Queues(self._desk)

    @cached_property
    def alerts(self) -> Alerts:
        """Alerts: list, check, acknowledge, silence, rules."""
        return Alerts(self._desk)

    def timeline(self, job_id: int) -> Sequence[TimelineEntry]:
        """One job's life, in order. Raises NotFoundError."""
        return self.jobs.timeline(job_id)

    def explain(self, job_id: int) -> Explanation:
        """Say why a job is not running, and the command that lifts it."""
        return self.jobs.explain(job_id)

    def schedule(
        self,
        cron: str | None = None,
        *,
        every: str | float | timedelta | None = None,
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Callable[[Task[P, R]], Task[P, R]]:
        """Put above `@app.task()`: enqueue the task at times. May be stacked, with a name each.

        cron: "0 0 * * *", read in the zone `tz` (default UTC) · every: instead of it, "15m" · name: default the
        task's · args: the job's arguments · misfire: what happens to fires that nobody handled in time: "latest"
        (default; only the newest runs), "skip" (none that is over `grace` late, default 60s), "all" (at most
        `max_catch_up`, default 100) · overlap: "allow", or "skip" while the last one's job lives · jitter: jobs
        start up to so much later · starts_at, ends_at: aware datetimes · queue, priority, headers: of the jobs.
        A process of `pgqueue scheduler` stores the schedule at its start. Raises InvalidInput, ConfigurationError.
        """

        def add(task: Task[P, R]) -> Task[P, R]:
            if not isinstance(task, Task):
                raise ConfigurationError("schedule: not a task; put @app.schedule above @app.task()")
            self._check_scheduled(task.name, args or {})
            definition = define_schedule(
                name=name or task.name, task=task.name, cron=cron, every=every, args=args, **options
            )
            if definition.name in self._schedules:
                raise ConfigurationError(f"schedule {definition.name}: defined twice; give each a name=")
            self._schedules[definition.name] = definition
            return task

        return add

    @cached_property
    def schedules(self) -> Schedules:
        """Schedules: list, define, pause, run now, preview."""
        return Schedules(self._desk, self._check_scheduled)

    def scheduler(self, *, app_reference: str | None = None, prune: bool = False) -> Scheduler:
        """A scheduler with this App's schedules.

        app_reference: names this App ("module:app"), so that schedules its code no longer defines are found: they
        fire no more, and are deleted if `prune`.
        """
        return Scheduler(
            self.registry(),
            list(self._schedules.values()),
            self.settings,
            events=self.events,
            defined_in=app_reference,
            prune=prune,
        )

    @cached_property
    def _schedules(self) -> dict[str, ScheduleDefinition]:
        return {}

    def _check_scheduled(self, name: str, args: Mapping[str, Any]) -> None:
        task = self._tasks.get(name)
        signature = None if task is None else task.checks_arguments
        misfit = None if signature is None else check_call(signature, args)
        if misfit is not None:
            raise InvalidArguments("args", misfit)

    @cached_property
    def _desk(self) -> Desk:
        return Desk(
            self.settings.database_url,
            via="python",
            connect_timeout_s=self.settings.connect_timeout_s,
            environment=self.settings.environment,
        )

    def close(self) -> None:
        """Close the connections this App opened for itself."""
        own = self.__dict__.get("own")
        if own is not None:
            own.close()

    @cached_property
    def _policies(self) -> dict[tuple[str, str], Retry]:
        return {}

    def _register(self, task: Task[..., Any]) -> Task[..., Any]:
        if task.name in self._tasks:
            raise DuplicateTask(f"task {task.name}: registered twice; give one of them another name=")
        self._tasks[task.name] = task
        return task

    def _plan_by_name(self, name: str, args: Mapping[str, Any] | None, options: dict[str, Any]) -> Any:
        task = self._tasks.get(name)
        return plan_one(
            name,
            args or {},
            JobOptions.checked(**options),
            defaults=TaskDefaults(key_ttl_s=self.settings.key_ttl_s) if task is None else task.defaults,
            signature=None if task is None else task.signature,
            bytes_max=self.settings.payload_bytes_max,
        )

    def _find_policy(self, name: str, queue: str) -> Retry:
        from_file = self.settings.retry
        task = self._tasks.get(name)
        if name in from_file.tasks:
            return Retry.from_mapping(from_file.tasks[name], where=f"retry.tasks.{name}")
        if task is not None and task.retry is not None:
            return task.retry
        if queue in from_file.queues:
            return Retry.from_mapping(from_file.queues[queue], where=f"retry.queues.{queue}")
        if self._retry is not None:
            return self._retry
        if from_file.default:
            return Retry.from_mapping(from_file.default, where="retry.default")
        return Retry()


class _Decorator(Protocol):
    """What `@app.task(…)` returns, as the type checker sees it."""

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[AsyncJobContext, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


def load_app(reference: str) -> App:
    """Import an application's App from `module:attribute`.

    Raises ConfigurationError naming what could not be found; an error inside the module is its cause.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name:
        raise ConfigurationError(f"-A {reference}: write module:attribute, as in `myservice.jobs:app`")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"-A {reference}: no module {error.name}; run from the folder that holds it, or set PYTHONPATH"
            ) from error
        raise ConfigurationError(f"-A {reference}: importing it failed: no module {error.name}") from error
    except Exception as error:
        raise ConfigurationError(f"-A {reference}: importing it failed: {type(error).__name__}") from error
    found = getattr(module, attribute or "app", None)
    if not isinstance(found, App):
        raise ConfigurationError(f"-A {reference}: {module_name} has no App called {attribute or 'app'}")
    return found


def plan_pools(queues: str | Sequence[str] | None, concurrency: int, tasks: Any) -> list[PoolPlan]:
    """Read `critical:8,default:4` (slots of their own) or `a,b` (shared slots). Raises ConfigurationError."""
    if queues is None:
        queues = sorted({"default", *(task.queue for task in tasks)})
    parts = [part.strip() for part in queues.split(",")] if isinstance(queues, str) else list(queues)
    shared: list[str] = []
    own: list[PoolPlan] = []
    for part in parts:
        name, colon, slots = part.partition(":")
        check_queue(name)
        if name in shared or any(name in plan.queues for plan in own):
            raise ConfigurationError(f"-q {name}: named twice")
        if not colon:
            shared.append(name)
        elif slots.isdecimal() and 1 <= int(slots) <= 10_000:
            own.append(PoolPlan((name,), int(slots)))
        else:
            raise ConfigurationError(f"-q {part}: slots are a number from 1 to 10000, as in {name}:8")
    if not 1 <= concurrency <= 10_000:
        raise ConfigurationError(f"-c {concurrency}: a number from 1 to 10000")
    return own + ([PoolPlan(tuple(shared), concurrency)] if shared else [])
