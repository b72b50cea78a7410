"""Which parameter is the context, which arguments a handler takes, and which calls do not fit."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from pgqueue.core.signature import check_call, inspect_handler
from pgqueue.errors import ConfigurationError


class JobContext:
    """Stands for the worker's class: the context is recognised by the name of its type."""


def with_ctx(ctx, ride_id: int, amount_cents: int = 0, note: str | None = None): ...


def without_context(ride_id: int): ...


def text_annotation(job: JobContext, ride_id): ...


def no_parameters(): ...


def only_context(ctx): ...


def open_ended(ctx, ride_id, **rest): ...


def keyword_only(ctx, *, ride_id, note="x"): ...


async def asynchronous(ctx, ride_id): ...


def open_ended_ctx(**ctx): ...


class Callable_:
    def __call__(self, ctx, ride_id): ...

    def method(self, ctx, ride_id): ...


@functools.wraps(with_ctx)
def wrapped(*args, **kwargs): ...


@pytest.mark.parametrize(
    ("fn", "context_name", "required", "allowed"),
    [
        (with_ctx, "ctx", {"ride_id"}, {"ride_id", "amount_cents", "note"}),
        (without_context, None, {"ride_id"}, {"ride_id"}),
        (text_annotation, "job", {"ride_id"}, {"ride_id"}),
        (no_parameters, None, set(), set()),
        (only_context, "ctx", set(), set()),
        (open_ended, "ctx", {"ride_id"}, None),
        (keyword_only, "ctx", {"ride_id"}, {"ride_id", "note"}),
        (open_ended_ctx, None, set(), None),
        (asynchronous, "ctx", {"ride_id"}, {"ride_id"}),
        (Callable_(), "ctx", {"ride_id"}, {"ride_id"}),
        (Callable_().method, "ctx", {"ride_id"}, {"ride_id"}),
        (functools.partial(with_ctx, note="x"), "ctx", {"ride_id"}, {"ride_id", "amount_cents", "note"}),
        (wrapped, "ctx", {"ride_id"}, {"ride_id", "amount_cents", "note"}),
    ],
)
def test_a_signature_is_read(fn, context_name, required, allowed):
    signature = inspect_handler(fn)
    assert signature.takes_context is (context_name is not None)
    assert signature.context_name == context_name
    assert signature.required == required
    assert signature.allowed == allowed


@pytest.mark.parametrize(
    "annotation",
    [JobContext, "JobContext", "pgqueue.JobContext", "'JobContext'", " JobContext ", "JobContext[int]"],
)
def test_the_context_may_have_any_name_if_it_is_annotated(annotation):
    def fn(c, a): ...

    fn.__annotations__ = {"c": annotation}
    signature = inspect_handler(fn)
    assert signature.context_name == "c"
    assert signature.required == {"a"}


@pytest.mark.parametrize(
    "annotation", ["NotJobContext", "JobContextual", int, int | None, None, 7, "list[JobContext]"]
)
def test_another_annotation_is_no_context(annotation):
    def fn(c, a): ...

    fn.__annotations__ = {"c": annotation}
    assert inspect_handler(fn).required == {"c", "a"}


def star(ctx, *items): ...


def positional_only(ctx, ride_id, /): ...


def positional_context(ctx, /, ride_id): ...


def keyword_context(*, ctx, ride_id): ...


def late_context(ride_id, ctx): ...


def late_annotation(ride_id, job: JobContext): ...


@pytest.mark.parametrize(
    ("fn", "parameter"),
    [
        (star, "*items"),
        (positional_only, "ctx"),
        (positional_context, "ctx"),
        (keyword_context, "ctx"),
        (late_context, "ctx"),
        (late_annotation, "job"),
    ],
)
def test_parameters_that_a_job_cannot_fill_are_refused_by_name(fn, parameter):
    with pytest.raises(ConfigurationError) as refused:
        inspect_handler(fn)
    assert fn.__name__ in str(refused.value)
    assert repr(parameter) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("thing", [None, 7, "text", type("NoSignature", (), {"__signature__": 7})()])
def test_what_is_no_function_is_refused(thing):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        inspect_handler(thing)


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (with_ctx, {"ride_id": 1}),
        (with_ctx, {"ride_id": 1, "amount_cents": 2, "note": None}),
        (without_context, {"ride_id": 0}),
        (no_parameters, {}),
        (open_ended, {"ride_id": 1, "anything": 2}),
    ],
)
def test_a_call_that_fits_has_no_message(fn, args):
    assert check_call(inspect_handler(fn), args) is None


@pytest.mark.proves("I13")
@pytest.mark.parametrize(
    ("fn", "args", "message"),
    [
        (with_ctx, {}, "missing argument 'ride_id'"),
        (keyword_only, {"note": "x"}, "missing argument 'ride_id'"),
        (open_ended, {"other": 1}, "missing argument 'ride_id'"),
        (with_ctx, {"ride_id": 1, "amount_cent": 2}, "unexpected argument 'amount_cent'; did you mean 'amount_cents'?"),
        (without_context, {"ride_id": 1, "zebra": 2}, "unexpected argument 'zebra'; the handler takes 'ride_id'"),
        (no_parameters, {"a": 1, "b": 2}, "unexpected arguments 'a', 'b'; the handler takes no arguments"),
        (with_ctx, {"ctx": 1, "ride_id": 1}, "unexpected argument 'ctx'; the handler takes 'amount_cents', 'note', 'ride_id'"),
        (open_ended, {"ctx": 1, "ride_id": 1}, "unexpected argument 'ctx': that name is the handler's context"),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit_names_the_arguments(fn, args, message):
    assert check_call(inspect_handler(fn), args) == message


@pytest.mark.proves("I13")
def test_many_or_long_names_make_a_short_message():
    args = {f"unexpected_{n}" * 100: n for n in range(1_000)}
    message = check_call(inspect_handler(no_parameters), args)
    assert "and 990 more" in message
    assert len(message) < 1_000


def typed(a: int, b: str, c: float, d: bool, e: dict[str, int], f: list): ...


def evaluated(a, b, c, d, e, f): ...


# This module's annotations are text; without the future import they are objects.
evaluated.__annotations__ = {"a": int, "b": str, "c": float, "d": bool, "e": dict[str, int], "f": list}


def lenient(a, b: Any, c: int | None, d: object, e=None, f=1): ...


def lenient_evaluated(a, b, c, d, e=None, f=1): ...


lenient_evaluated.__annotations__ = {"b": Any, "c": int | None, "d": "Optional[int]", "e": int, "f": None}


@pytest.mark.proves("I13")
@pytest.mark.parametrize("fn", [typed, evaluated])
@pytest.mark.parametrize("name", list("abcdef"))
def test_none_for_a_plainly_typed_argument_is_refused_with_the_usual_cause(fn, name):
    signature = inspect_handler(fn)
    args = dict.fromkeys("abcdef", 1)
    assert check_call(signature, args) is None
    message = check_call(signature, args | {name: None})
    assert f"argument '{name}' is None" in message
    assert "flush the session first" in message


@pytest.mark.parametrize("fn", [lenient, lenient_evaluated])
def test_none_is_accepted_where_the_annotation_or_the_default_allows_it(fn):
    assert check_call(inspect_handler(fn), dict.fromkeys("abcdef")) is None
    assert inspect_handler(fn).never_none == frozenset()
