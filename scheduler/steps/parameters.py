"""Checking a step's keywords against the function that will get them."""

import difflib
import inspect
import json
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from scheduler.steps.errors import StepError

CONTEXT = "context"


def check_parameters(
    name: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    skip: int = 1,
    arrays: Collection[str] = (),
) -> None:
    """See that `function(stack, **given)` fits its signature; `skip` parameters come before the keywords.

    `arrays` are further keywords, with stacks or arrays as their values.

    Values are checked where the annotation is one of plain data (int, float, str, bool, None, literals, and
    lists, tuples and mappings of them); an int is a float, a list is any sequence. A function that tells no
    signature, as some compiled ones, isn't checked.

    Raises
    ------
    StepError
        An unknown keyword (with the nearest one that exists), a missing one, or a value of another type.
    """
    known = keywords_of(function, skip=skip)
    if known is None:
        return
    if CONTEXT in given:
        raise StepError(f"{name}: context is given by the scheduler, not under with")
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    named = {key: each for key, each in known.items() if each.kind is not inspect.Parameter.VAR_KEYWORD}
    for key in (*given, *arrays):
        if key not in named and not open_ended:
            raise StepError(unknown_keyword(name, key, named))
    there = {*given, *arrays}
    missing = [key for key, each in named.items() if each.default is each.empty and key not in there]
    if missing:
        raise StepError(
            f"{name} needs {', '.join(missing)}: add it under with (an array in a file under arrays, "
            "another stack under inputs)"
        )
    check_values(name, function, given)


def keywords_of(function: Callable[..., Any], *, skip: int = 1) -> dict[str, inspect.Parameter] | None:
    """The parameters that `with` may give, all but the first `skip` and `context`; None if unknown."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    byname = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
    return {each.name: each for each in parameters[skip:] if each.kind in byname and each.name != CONTEXT}


def first_parameter(name: str, function: Any, *, skip: int = 0) -> str:
    """The name of the parameter that a call's first argument goes to, `skip` aside; "" if it isn't known.

    Raises
    ------
    StepError
        All go by keyword.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return ""
    if not parameters or parameters[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise StepError(f"{name} takes no stack: a step's first parameter is one, and isn't behind a *")
    return parameters[0].name


def unknown_keyword(name: str, key: str, named: Iterable[str]) -> str:
    """What to say about a keyword that a step doesn't have."""
    names = list(named)
    takes = f"it takes {', '.join(names)}" if names else "it takes none"
    return f"{name} has no parameter {key!r}{nearest(key, names)}; {takes}"


def check_values(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """StepError for a value that doesn't fit a plain annotation of `function`, or isn't plain itself."""
    hints = _annotations(function)
    for key, value in given.items():
        try:
            text = json.dumps(value)
        except (TypeError, ValueError) as error:
            raise StepError(
                f"{name}: {key} is a {type(value).__name__}, where numbers, text, lists or mappings are meant"
            ) from error
        adapter = _plain_adapter(hints[key]) if key in hints else None
        if adapter is None:
            continue
        try:
            adapter.validate_json(text)
        except ValidationError as error:
            wanted = inspect.formatannotation(hints[key]).replace("collections.abc.", "")
            raise StepError(f"{name}: {key} is {value!r}, where {wanted} is wanted") from error


def nearest(word: str, words: Iterable[str]) -> str:
    """The words " (did you mean …?)" if one of `words` is like `word`, else none."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    called = function if hasattr(function, "__annotations__") else type(function).__call__
    try:
        return typing.get_type_hints(inspect.unwrap(called))
    except (NameError, TypeError, AttributeError):  # names that exist only for a type checker
        return {}


def _plain_adapter(hint: Any) -> TypeAdapter[Any] | None:
    """A strict validator for an annotation of plain data; None for any other, such as an array's."""
    try:
        return TypeAdapter(hint, config=ConfigDict(strict=True))
    except (PydanticUserError, TypeError, NameError):
        return None
