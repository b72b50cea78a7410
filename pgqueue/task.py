"""A registered function, and the ways to enqueue it. Made by `@app.task`; part of the public face."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sized
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from pgqueue.core.durations import parse_duration
from pgqueue.core.events import Events, JobsEnqueued
from pgqueue.core.keys import KeyOfArguments
from pgqueue.core.names import check_priority, check_queue, check_task
from pgqueue.core.registry import RegisteredTask
from pgqueue.core.retry import Retry
from pgqueue.core.signature import HandlerSignature, inspect_handler
from pgqueue.errors import ConfigurationError, InvalidOption
from pgqueue.producer.enqueue import (
    Enqueued,
    EnqueuedMany,
    enqueue,
    enqueue_async,
    enqueue_many,
    enqueue_many_async,
)
from pgqueue.producer.plan import EnqueuePlan, JobOptions, TaskDefaults, plan_many, plan_one
from pgqueue.storage.binding import Where
from pgqueue.tracing import Producing, current_trace_id, producing

if TYPE_CHECKING:
    from pgqueue.app import App

P = ParamSpec("P")
R = TypeVar("R")

_NO_OPTIONS = JobOptions()
_KEY_OPTIONS: Final = frozenset({"unique", "unique_for", "debounce", "key_ttl", "key_scope", "on_conflict"})
BATCH_MAX: Final = 5_000
WINDOW_BATCH: Final = 1_000  # jobs to a call when a task has batch_window= but no batch=
WINDOW_MIN_S: Final = 0.1
WINDOW_MAX_S: Final = 31 * 86_400.0
GROUP_COMMIT_MAX: Final = 64  # more savepoints than fit a backend's cache slow every snapshot down


class Task(Generic[P, R]):
    """A function that workers run. Calling it runs it here and now, as plain Python."""

    def __init__(
        self,
        app: App,
        function: Callable[..., Any],
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
        **key_options: Any,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"task {name}: not a function; put @app.task above a def")
        self.app = app
        self.function = function
        self.name = check_task(
            name or f"{_module_of(function)}.{function.__qualname__}".replace(".<locals>", "")
        )
        self.queue = check_queue(queue)
        self.priority = check_priority(priority)
        self.retry = retry
        self.timeout_s = (
            None if timeout is None else parse_duration(timeout, field="timeout", minimum_s=0.001)
        )
        self.batch_window_s = (
            None
            if batch_window is None
            else parse_duration(
                batch_window, field="batch_window", minimum_s=WINDOW_MIN_S, maximum_s=WINDOW_MAX_S
            )
        )
        if self.batch_window_s is not None and not batch:
            batch = WINDOW_BATCH
        self.batch, self.batch_key, self.group_commit = _checked_together(
            self.name, batch, batch_key, group_commit
        )
        self.audit = _checked_audit(self.name, audit)
        self.options = _checked_options(self.name, key_options)
        # A batch handler takes a list of jobs, so its parameters say nothing about one job's arguments.
        self.signature = inspect_handler(function)
        _check_unique(self.name, self.options, None if self.batch else self.signature)
        self.is_async = inspect.iscoroutinefunction(function)
        self.__name__ = getattr(function, "__name__", self.name)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function itself, without any queue."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name} queue={self.queue}>"

    def using(self, **options: Any) -> BoundTask[P, R]:
        """The task with options for the jobs enqueued through it.

        queue: str · priority: int, 0 (first) to 9 · delay: "5m", seconds or timedelta · run_at: aware datetime ·
        idempotency_key: str · key_ttl: duration · key_scope: "time", "forever", "live", "waiting" ·
        on_conflict: "return_existing", "raise", "replace" · unique: names of arguments, or True · unique_for: duration ·
        debounce: duration · concurrency_key: str · retry: Retry · timeout: duration ·
        expires_at: aware datetime · headers: mapping of str to str · tags: sequence of str.
        Raises InvalidInput for an unknown option or a value out of range.
        """
        return BoundTask(self, self.options.merged(_checked_for(self, options)))

    def enqueue(self, where: Where, /, *args: P.args, **kwargs: P.kwargs) -> Enqueued:
        """Enqueue one job in the transaction of `where` (None: in one of its own), with the handler's arguments by name.

        Returns the job's id, and whether it was created. Raises InvalidArguments before any statement was sent,
        TypeError for a `where` that is not a connection or session.
        """
        return BoundTask(self, self.options).enqueue(where, *args, **kwargs)

    async def enqueue_async(self, where: Where, /, *args: P.args, **kwargs: P.kwargs) -> Enqueued:
        """As `enqueue`, on an async connection or session."""
        return await BoundTask(self, self.options).enqueue_async(where, *args, **kwargs)

    def enqueue_many(self, where: Where, jobs: Iterable[Mapping[str, Any]], /) -> EnqueuedMany:
        """Enqueue a job for each mapping of arguments, all or none, a thousand to a statement."""
        return BoundTask(self, self.options).enqueue_many(where, jobs)

    async def enqueue_many_async(self, where: Where, jobs: Iterable[Mapping[str, Any]], /) -> EnqueuedMany:
        """As `enqueue_many`, on an async connection or session."""
        return await BoundTask(self, self.options).enqueue_many_async(where, jobs)

    def enqueue_in(self, where: Any, parent_id: int, args: dict[str, Any]) -> Enqueued:
        """Enqueue as a child of a running job; handlers call `ctx.enqueue`."""
        return BoundTask(self, self.options).enqueue_in(where, parent_id, args)

    async def enqueue_in_async(self, where: Any, parent_id: int, args: dict[str, Any]) -> Enqueued:
        """The same on an async connection."""
        return await BoundTask(self, self.options).enqueue_in_async(where, parent_id, args)

    def enqueue_many_in(self, where: Any, parent_id: int, jobs: Iterable[Mapping[str, Any]]) -> EnqueuedMany:
        """Enqueue many as children of a running job; handlers call `ctx.enqueue_many`."""
        return BoundTask(self, self.options).enqueue_many_in(where, parent_id, jobs)

    async def enqueue_many_in_async(
        self, where: Any, parent_id: int, jobs: Iterable[Mapping[str, Any]]
    ) -> EnqueuedMany:
        """The same on an async connection."""
        return await BoundTask(self, self.options).enqueue_many_in_async(where, parent_id, jobs)

    @property
    def defaults(self) -> TaskDefaults:
        """What a job gets where its options say nothing."""
        return TaskDefaults(
            queue=self.queue,
            priority=self.priority,
            max_attempts=self.app.policy(self.name, self.queue).max_attempts,
            window_s=self.batch_window_s or 0,
            batch_key=self.batch_key,
            key_ttl_s=self.app.settings.key_ttl_s,
            audit=self.audit_full,
        )

    def registered(self) -> RegisteredTask:
        """The task as a worker knows it."""
        return RegisteredTask(
            name=self.name,
            function=self.function,
            is_async=self.is_async,
            signature=self.signature,
            queue=self.queue,
            priority=self.priority,
            retry=self.app.policy(self.name, self.queue),
            timeout_s=self.timeout_s,
            batch=self.batch,
            batch_key=self.batch_key,
            batch_window_s=self.batch_window_s,
            group_commit=self.group_commit,
            audit_full=self.audit_full,
        )

    @property
    def audit_full(self) -> bool:
        """Whether the plain path of its jobs is written to the audit: as the task says, else as the settings do."""
        return (self.audit or self.app.settings.audit) == "full"

    @property
    def checks_arguments(self) -> HandlerSignature | None:
        """What the arguments of one job are checked against when it is enqueued."""
        return None if self.batch else self.signature


class BoundTask(Generic[P, R]):
    """A task with options, from `task.using(…)`."""

    def __init__(self, task: Task[P, R], options: JobOptions) -> None:
        self.task = task
        self.options = options

    def using(self, **options: Any) -> BoundTask[P, R]:
        """More options; the later ones win."""
        return BoundTask(self.task, self.options.merged(_checked_for(self.task, options)))

    def enqueue(self, where: Where, /, *args: P.args, **kwargs: P.kwargs) -> Enqueued:
        """As Task.enqueue."""
        app = self.task.app
        with producing(self._queue, self.task.name) as span:
            return told_one(app.events, span, enqueue(where, self.plan(args, kwargs), own=app.own))

    async def enqueue_async(self, where: Where, /, *args: P.args, **kwargs: P.kwargs) -> Enqueued:
        """As Task.enqueue_async."""
        app = self.task.app
        with producing(self._queue, self.task.name) as span:
            made = await enqueue_async(where, self.plan(args, kwargs), own=app.own)
            return told_one(app.events, span, made)

    def enqueue_many(self, where: Where, jobs: Iterable[Mapping[str, Any]], /) -> EnqueuedMany:
        """As Task.enqueue_many."""
        app = self.task.app
        with producing(self._queue, self.task.name, count=_count_of(jobs)):
            return _told_many(app.events, enqueue_many(where, self._plans(jobs), own=app.own))

    async def enqueue_many_async(self, where: Where, jobs: Iterable[Mapping[str, Any]], /) -> EnqueuedMany:
        """As Task.enqueue_many_async."""
        app = self.task.app
        with producing(self._queue, self.task.name, count=_count_of(jobs)):
            return _told_many(app.events, await enqueue_many_async(where, self._plans(jobs), own=app.own))

    def enqueue_in(self, where: Any, parent_id: int, args: dict[str, Any]) -> Enqueued:
        """Enqueue as a child of a running job; handlers call `ctx.enqueue`."""
        app = self.task.app
        with producing(self._queue, self.task.name) as span:
            return told_one(
                app.events, span, enqueue(where, self._child(parent_id).plan((), args), own=app.own)
            )

    async def enqueue_in_async(self, where: Any, parent_id: int, args: dict[str, Any]) -> Enqueued:
        """The same on an async connection."""
        app = self.task.app
        with producing(self._queue, self.task.name) as span:
            made = await enqueue_async(where, self._child(parent_id).plan((), args), own=app.own)
            return told_one(app.events, span, made)

    @property
    def _queue(self) -> str:
        return self.options.queue or self.task.queue

    def enqueue_many_in(self, where: Any, parent_id: int, jobs: Iterable[Mapping[str, Any]]) -> EnqueuedMany:
        """Enqueue many as children of a running job; handlers call `ctx.enqueue_many`."""
        return self._child(parent_id).enqueue_many(where, jobs)

    async def enqueue_many_in_async(
        self, where: Any, parent_id: int, jobs: Iterable[Mapping[str, Any]]
    ) -> EnqueuedMany:
        """The same on an async connection."""
        return await self._child(parent_id).enqueue_many_async(where, jobs)

    def _child(self, parent_id: int) -> BoundTask[P, R]:
        return BoundTask(self.task, self.options.merged(JobOptions(parent_id=parent_id)))

    def plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> EnqueuePlan:
        """Check the arguments and make the statement's parameters; sends nothing."""
        if args:
            raise TypeError(
                f"task {self.task.name}: arguments travel by name; write enqueue(where, name=value)"
            )
        return plan_one(
            self.task.name,
            kwargs,
            self.options,
            defaults=self.task.defaults,
            signature=self.task.checks_arguments,
            bytes_max=self.task.app.settings.payload_bytes_max,
        )

    def _plans(self, jobs: Iterable[Mapping[str, Any]]) -> Any:
        return plan_many(
            self.task.name,
            jobs,
            self.options,
            defaults=self.task.defaults,
            signature=self.task.checks_arguments,
            bytes_max=self.task.app.settings.payload_bytes_max,
        )


def told_one(events: Events, span: Producing, made: Enqueued) -> Enqueued:
    """Tell the span and the listeners of a job that was enqueued, and pass it on."""
    span.made(made.id, queue=made.queue)
    if events.heard:
        events.emit(JobsEnqueued(made.task, made.queue, made.id, 1, int(made.created), current_trace_id()))
    return made


def _told_many(events: Events, made: EnqueuedMany) -> EnqueuedMany:
    if made and events.heard:
        count, created = len(made), made.created_count
        events.emit(JobsEnqueued(made.task, made.queue, None, count, created, current_trace_id()))
    return made


def _count_of(jobs: Iterable[Mapping[str, Any]]) -> int:
    return len(jobs) if isinstance(jobs, Sized) else 0


def _checked_options(name: str, given: Mapping[str, Any]) -> JobOptions:
    unknown = sorted(given.keys() - _KEY_OPTIONS)
    if unknown:
        raise TypeError(f"task {name}: unexpected option {unknown[0]!r}")
    return JobOptions.checked(**given) if given else _NO_OPTIONS


def _checked_for(task: Task[Any, Any], options: Mapping[str, Any]) -> JobOptions:
    checked = JobOptions.checked(**options)
    _check_unique(task.name, checked, task.checks_arguments)
    return checked


def _check_unique(name: str, options: JobOptions, signature: HandlerSignature | None) -> None:
    """A misspelt argument in `unique` is found where it is written, not by the first job."""
    key = options.idempotency_key
    if not isinstance(key, KeyOfArguments) or signature is None or signature.allowed is None:
        return
    strange = sorted(set(key.names or ()) - signature.allowed)
    if strange:
        raise InvalidOption("unique", f"task {name} has no argument {strange[0]!r}")


def _module_of(function: Callable[..., Any]) -> str:
    """The name that a worker imports the function's module by.

    In a program that was started as a script it is called __main__, which names another module in every process:
    `python -m shop.jobs` is shop.jobs then, and `python jobs.py` is jobs, as it is for whoever starts beside it.
    """
    if function.__module__ != "__main__":
        return function.__module__
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return "__main__" if file is None else Path(file).stem


def _checked_audit(name: str, audit: str | None) -> str | None:
    if audit not in {None, "changes", "full"}:
        raise ConfigurationError(f"task {name}: audit is unknown; give 'changes' or 'full'")
    return audit


def _checked_together(
    name: str, batch: int, batch_key: str | None, group_commit: int
) -> tuple[int, str | None, int]:
    if batch and group_commit:
        raise ConfigurationError(f"task {name}: batch and group_commit: give one of them")
    if not 0 <= batch <= BATCH_MAX:
        raise ConfigurationError(f"task {name}: batch is out of range; 1 to {BATCH_MAX} jobs")
    if not 0 <= group_commit <= GROUP_COMMIT_MAX:
        raise ConfigurationError(f"task {name}: group_commit is out of range; 1 to {GROUP_COMMIT_MAX} jobs")
    if batch_key is not None and not isinstance(batch_key, str):
        raise ConfigurationError(
            f"task {name}: batch_key is not a name; give the name of one of its arguments"
        )
    if batch_key is not None and not batch:
        raise ConfigurationError(f"task {name}: batch_key needs batch= or batch_window=")
    return batch, batch_key, group_commit
