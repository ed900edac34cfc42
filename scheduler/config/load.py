"""From a YAML file to a `RunConfig`, or to one report of everything that is wrong with it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scheduler.config.document import Document
from scheduler.config.errors import ConfigError, ConfigProblem
from scheduler.config.model import RunConfig
from scheduler.images.patterns import nearest

_SET_BY_LOADING = "config_file"
_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text; put it in quotes if it looks like something else",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
}


def load_config(path: Path | str) -> RunConfig:
    """Read and check a config file. Relative paths in it count from the folder that it lies in.

    Raises
    ------
    ConfigError
        One line `file:line:column: what` for each problem.
    """
    path = Path(path)
    document = Document(path)
    data = dict(document.data)
    problems = []
    if _SET_BY_LOADING in data:
        del data[_SET_BY_LOADING]
        problems.append(_unknown_key(document, (_SET_BY_LOADING,)))
    try:
        config = RunConfig.model_validate(
            {**data, _SET_BY_LOADING: path.resolve()}, context={"folder": path.resolve().parent}
        )
    except ValidationError as error:
        # The input of an error may be anything; it isn't needed, and its repr could be long.
        details = error.errors(include_url=False, include_input=False)
        problems += [_problem(document, detail) for detail in details]
        raise ConfigError(*problems) from error
    if problems:
        raise ConfigError(*problems)
    return config


def config_error(config: RunConfig, problems: Mapping[tuple[str | int, ...], str]) -> ConfigError:
    """What was found wrong with a config after it was loaded, by path in it, as `load_config` puts it."""
    named = {path: f"{_written(path)}: {what}" for path, what in problems.items()}
    if config.config_file is None:
        return ConfigError(*(ConfigProblem("config", 0, 0, what) for what in named.values()))
    document = Document(config.config_file)
    return ConfigError(*(document.problem(what, path) for path, what in named.items()))


def _problem(document: Document, detail: ErrorDetails) -> ConfigProblem:
    context = detail.get("ctx", {})
    path = _in_file(detail["loc"])
    at = filter(None, str(context.get("at", "")).split("."))
    path += tuple(int(part) if part.isdecimal() else part for part in at)
    name = _written(path)
    kind = detail["type"]
    if kind in _EXPECTED:
        return document.problem(f"{name}: expected {_EXPECTED[kind]}", path)
    match kind:
        case "extra_forbidden":
            return _unknown_key(document, path, among=detail["loc"][:-1])
        case "missing":
            return document.problem(f"{name}: missing", path[:-1])
        case "literal_error":
            return document.problem(f"{name}: expected {context.get('expected')}", path)
        case "union_tag_not_found":
            key = context["discriminator"].strip("'")
            return document.problem(f"{name}.{key}: missing", path)
        case "union_tag_invalid":
            key = context["discriminator"].strip("'")
            expected = " or ".join(context["expected_tags"].rsplit(", ", 1))
            return document.problem(f"{name}.{key}: expected {expected}", (*path, key))
        case _:
            what = detail["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
            return document.problem(f"{name}: {what[:1].lower()}{what[1:]}", path)


def _unknown_key(
    document: Document, path: tuple[str | int, ...], *, among: tuple[str | int, ...] = ()
) -> ConfigProblem:
    known = [key for key in _keys_at(among) if key != _SET_BY_LOADING]
    what = f"unknown key {_written(path)!r}{nearest(str(path[-1]), known)}"
    return document.problem(what, path, of_key=True)


def _in_file(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """`loc` without the names of a union's branches, which pydantic adds and no file holds."""
    tags = {"word", "list", "mapping"}
    path = tuple(part for part in loc if not (part in tags and loc[:2] == ("devices", "gpus")))
    if "inputs" in path[:3]:
        path = tuple(part for place, part in enumerate(path) if place != 4 or part not in ("name", "fields"))
    # A kind of cluster may have the name of a key in it: only its place tells that it is a branch.
    path = path[:1] + path[2:] if path[:1] == ("cluster",) else path
    return tuple(part for part in path if part != "[key]")


def _written(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "config"


def _keys_at(loc: tuple[str | int, ...]) -> list[str]:
    """The keys that there are at a place, given as pydantic does, with the names of a union's branches."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in loc:
        branch = [
            model
            for model in models
            if "kind" in (fields := model.model_fields) and fields["kind"].default == part
        ]
        if branch and len(models) > 1:
            models = branch
        elif isinstance(part, str):
            models = [
                inner
                for model in models
                for name, field in model.model_fields.items()
                if part in (name, field.alias)
                for inner in _models_in(field.annotation)
            ]
    return [field.alias or name for model in models for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
