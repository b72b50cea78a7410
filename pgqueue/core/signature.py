"""What a handler's signature says: where the context goes, which arguments it needs and which it takes.

Called once per task at registration (`inspect_handler`) and once per enqueue (`check_call`); pure.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_origin

from pgqueue.errors import ConfigurationError

CONTEXT_NAME = "ctx"
CONTEXT_TYPES = frozenset({"JobContext", "AsyncJobContext", "BatchContext", "AsyncBatchContext"})

_NAMES_SHOWN_MAX = 10
_NAME_CHARS_MAX = 60
_NEVER_NONE: tuple[type, ...] = (int, str, float, bool, dict, list)
_NEVER_NONE_NAMES = frozenset(kind.__name__ for kind in _NEVER_NONE)
_TEXT_ANNOTATION = re.compile(r"\s*(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*)\s*(?:\[(?s:.*)\])?\s*")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class HandlerSignature:
    """A handler's parameters, as far as a job's arguments are concerned.

    Call a handler by keyword only: `fn(**{context_name: ctx}, **args)`, or `fn(ctx, **args)`.
    `allowed` is None when the handler takes `**kwargs`; `never_none` are the parameters whose plain
    annotation (int, str, float, bool, dict, list) rules None out.
    """

    takes_context: bool
    context_name: str | None
    required: frozenset[str]
    allowed: frozenset[str] | None
    never_none: frozenset[str]


def inspect_handler(fn: Callable[..., Any]) -> HandlerSignature:
    """Read a handler's signature.

    The first parameter is the context if it is named `ctx` or annotated JobContext; the others are the
    job's arguments. Raises ConfigurationError for parameters that keyword arguments cannot fill
    (`*args`, positional-only) and for a context that is not first.
    """
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"task function {_name_of(fn)}: its parameters cannot be read; "
            "register a plain `def` or `async def` function"
        ) from error
    context_name: str | None = None
    if parameters and _is_context(parameters[0]):
        context_name = parameters[0].name
        if parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise _refuse(fn, context_name, "the context must be an ordinary first parameter")
        parameters = parameters[1:]
    for parameter in parameters:
        _check_parameter(fn, parameter)
    named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return HandlerSignature(
        takes_context=context_name is not None,
        context_name=context_name,
        required=frozenset(p.name for p in named if p.default is inspect.Parameter.empty),
        allowed=None if len(named) < len(parameters) else frozenset(p.name for p in named),
        never_none=frozenset(
            p.name for p in named if p.default is not None and _rules_out_none(p.annotation)
        ),
    )


def check_call(sig: HandlerSignature, args: Mapping[str, object]) -> str | None:
    """Return None if a handler can be called with `args`, else one line that names the misfits."""
    names = args.keys()
    if not sig.required <= names:
        return f"missing {_listed(sig.required - names)}"
    if sig.allowed is None:
        if sig.context_name is not None and sig.context_name in names:
            return f"unexpected {_listed({sig.context_name})}: that name is the handler's context"
    elif not names <= sig.allowed:
        return _unexpected(names - sig.allowed, sig.allowed)
    for name in sig.never_none:
        if args.get(name, _MISSING) is None:
            return (
                f"argument {name!r} is None; if it is the id of a new row, "
                "flush the session first so that the id exists"
            )
    return None


def _check_parameter(fn: Callable[..., Any], parameter: inspect.Parameter) -> None:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        raise _refuse(fn, f"*{parameter.name}", "arguments travel by name; name each one, or take **kwargs")
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise _refuse(fn, parameter.name, "it is positional-only, but arguments travel by name; drop the `/`")
    if _is_context(parameter):
        raise _refuse(fn, parameter.name, "the context must come first; move it to the front or rename it")


def _unexpected(extra: set[str], allowed: frozenset[str]) -> str:
    message = f"unexpected {_listed(extra)}"
    if len(extra) == 1:
        near = get_close_matches(str(next(iter(extra)))[:_NAME_CHARS_MAX], sorted(allowed), n=1)
        if near:
            return f"{message}; did you mean {near[0]!r}?"
    return f"{message}; the handler takes {_listed(allowed, noun=False)}"


def _listed(names: frozenset[str] | set[str], *, noun: bool = True) -> str:
    if not names:
        return "no arguments"
    shown = [repr(str(name)[:_NAME_CHARS_MAX]) for name in sorted(names, key=str)[:_NAMES_SHOWN_MAX]]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    prefix = ("argument " if len(names) == 1 else "arguments ") if noun else ""
    return f"{prefix}{', '.join(shown)}{more}"


def _is_context(parameter: inspect.Parameter) -> bool:
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return False
    return parameter.name == CONTEXT_NAME or _annotation_name(parameter.annotation) in CONTEXT_TYPES


def _rules_out_none(annotation: Any) -> bool:
    if isinstance(annotation, str):
        # Text annotations are read, not evaluated: `int | None` does not match the pattern.
        return _annotation_name(annotation) in _NEVER_NONE_NAMES
    return (get_origin(annotation) or annotation) in _NEVER_NONE


def _annotation_name(annotation: Any) -> str | None:
    if isinstance(annotation, str):
        match = _TEXT_ANNOTATION.fullmatch(annotation.strip().strip("'\""))
        return match[1] if match else None
    name = getattr(get_origin(annotation) or annotation, "__name__", None)
    return name if isinstance(name, str) else None


def _refuse(fn: Callable[..., Any], parameter: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"task function {_name_of(fn)}, parameter {parameter!r}: {reason}")


def _name_of(fn: Callable[..., Any]) -> str:
    unwrapped: Any = inspect.unwrap(fn)
    target = getattr(unwrapped, "func", unwrapped)  # functools.partial
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{getattr(target, '__module__', None) or type(target).__module__}.{name}"
