"""Finding the object behind `package.module:name`."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from scheduler.steps.errors import StepError
from scheduler.steps.parameters import nearest


def locate(reference: str, search_path: Sequence[str] = ()) -> Any:
    """Import `package.module` and return its `name`; dots in the name go into classes.

    The folders of `search_path` are put at the end of `sys.path` and stay there, so that an installed module
    is never hidden by a file of the same name: if it is the other way round, that is an error, not a
    surprise.

    Raises
    ------
    StepError
        Not of the form `package.module:name`; no such module; a module in `search_path` that another one
        hides; an import that fails, with the whole chain of causes in the message; no such name in the
        module.
    """
    module_name, _, name = reference.partition(":")
    parts = module_name.split(".")
    if not name or not all(part.isidentifier() for part in (*parts, *name.split("."))):
        raise StepError(f"{reference!r} is not of the form package.module:function")
    for folder in search_path:
        if folder not in sys.path:
            sys.path.append(folder)
    importlib.invalidate_caches()
    for folder in search_path:
        _refuse_hidden(module_name, Path(folder))
    found: Any = _imported(module_name, reference, search_path)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            public = [each for each in vars(found) if not each.startswith("_")]
            raise StepError(f"{module_name} has no {name!r}{nearest(part, public)}") from error
    return found


def _imported(module_name: str, reference: str, search_path: Sequence[str]) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            beside = f" nor in {', '.join(search_path)}" if search_path else " nor beside the config"
            raise StepError(
                f"no module {error.name!r} for the step {reference}, neither installed{beside}"
            ) from error
        raise StepError(_story(reference, error)) from error
    except (Exception, SystemExit) as error:  # whatever a user's module does when it is imported
        raise StepError(_story(reference, error)) from error


def _story(reference: str, error: BaseException) -> str:
    """What went wrong and what that came from, in one line."""
    told, seen = [], error
    while True:
        told.append(f"{type(seen).__name__}: {seen}")
        cause = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
        if cause is None:
            return f"importing the step {reference} failed: {', caused by '.join(told)}"
        seen = cause


def _refuse_hidden(module_name: str, folder: Path) -> None:
    """StepError if `folder` has the module, and Python would take another one of its name."""
    top, *rest = module_name.split(".")
    own = folder.joinpath(top, *rest)
    if not (own.with_suffix(".py").is_file() or (own / "__init__.py").is_file()):
        return
    spec = _spec_of(top)
    places = [Path(place) for place in _places(spec)]
    mine = (folder / f"{top}.py", folder / top, folder / top / "__init__.py")
    if places and not any(_same(place, each) for place in places for each in mine):
        here = own if own.is_dir() else own.with_suffix(".py")
        raise StepError(
            f"the step's module {here} is hidden by another module of that name, {places[0]}: rename yours"
        )


def _spec_of(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # a module that was made without a spec, such as __main__
        return None


def _places(spec: ModuleSpec | None) -> list[str]:
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return list(spec.submodule_search_locations)
    return [spec.origin or "built-in"]


def _same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))
