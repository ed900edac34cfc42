"""A YAML file read as plain values, with the place of each of them.

The text comes from a stranger as far as this module knows: it builds nothing but mappings, lists and scalars,
and refuses what would cost unbounded memory or stack before it builds anything.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from scheduler.config.errors import ConfigError, ConfigProblem

MAX_BYTES = 256 << 10
MAX_DEPTH = 40
MAX_VALUES = 20_000


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `no` is text, so is a date, and so is `01`, an octal in YAML 1.1."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's way


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)"
        r"|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


class _Mark(Protocol):
    line: int
    column: int


class Document:
    """The mapping that a YAML file holds: `data`, and `place(path)` for where each value in it stands.

    Raises
    ------
    ConfigError
        The file can't be read, isn't YAML, isn't a mapping, repeats a key, nests deeper than 40 levels, or
        stands for more than 20,000 values once its aliases are written out.
    """

    def __init__(self, path: Path) -> None:
        self.file = str(path)
        text = self._read(path)
        try:
            self._refuse_depth(text)
            root = yaml.compose(text, Loader=_Loader)
            if root is None:
                raise self.error("the file is empty; a config needs input, steps and output")
            if not isinstance(root, yaml.MappingNode):
                raise self.error(f"expected a mapping of keys, found a {_kind(root)}", root.start_mark)
            self._root = root
            self._refuse_expansion(root)
            self._refuse_duplicates(root)
            # A fresh loader on no text: only its constructor is used, on the nodes that were just checked.
            self.data: dict[str, Any] = _Loader("").construct_document(root)
        except yaml.MarkedYAMLError as error:
            what = f"not YAML: {error.problem or error.context}"
            if error.problem and error.context and error.context_mark:
                what += f" ({error.context} on line {error.context_mark.line + 1})"
            raise self.error(what, error.problem_mark or error.context_mark) from error
        except yaml.YAMLError as error:
            raise self.error(f"not YAML: {' '.join(str(error).split())}") from error
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise self.error(f"a value can't be read: {error}") from error

    def place(self, path: Sequence[str | int], *, of_key: bool = False) -> tuple[int, int]:
        """The line and column of the value at `path`, or of its key; of its nearest parent that there is."""
        node: yaml.Node = self._root
        mark = node.start_mark
        for depth, part in enumerate(path, start=1):
            found = _child(node, part)
            if found is None:
                break
            key, node = found
            mark = key.start_mark if of_key and depth == len(path) else node.start_mark
        return mark.line + 1, mark.column + 1

    def problem(self, what: str, path: Sequence[str | int], *, of_key: bool = False) -> ConfigProblem:
        """A problem at `path`."""
        return ConfigProblem(self.file, *self.place(path, of_key=of_key), what)

    def error(self, what: str, mark: _Mark | None = None) -> ConfigError:
        """An error with one problem, at `mark` or of the file as a whole."""
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        return ConfigError(ConfigProblem(self.file, line, column, what))

    def _read(self, path: Path) -> str:
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise self.error("no such file") from None
        except OSError as error:
            raise self.error(f"can't be read: {error.strerror or error}") from error
        if len(data) > MAX_BYTES:
            raise self.error("larger than 256 KiB, which no config is; is it the right file?")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 text (byte {error.start})") from error

    def _refuse_depth(self, text: str) -> None:
        # The parser keeps its own stack, the composer after it recurses: depth is checked between the two.
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise self.error(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1

    def _refuse_expansion(self, root: yaml.Node) -> None:
        sizes: dict[yaml.Node, int] = {}
        open_nodes: set[yaml.Node] = set()

        def size(node: yaml.Node) -> int:
            if node in open_nodes:
                raise self.error("an alias stands for a value that contains itself", node.start_mark)
            if node not in sizes:
                open_nodes.add(node)
                sizes[node] = 1 + sum(map(size, _children(node)))
                open_nodes.discard(node)
            if sizes[node] > MAX_VALUES:
                raise self.error(f"stands for more than {MAX_VALUES:,} values", node.start_mark)
            return sizes[node]

        size(root)

    def _refuse_duplicates(self, root: yaml.Node) -> None:
        problems: list[ConfigProblem] = []
        seen_nodes: set[yaml.Node] = set()

        def walk(node: yaml.Node) -> None:
            if node in seen_nodes:
                return
            seen_nodes.add(node)
            if isinstance(node, yaml.MappingNode):
                first: dict[str, int] = {}
                for key, _ in node.value:
                    line, column = key.start_mark.line + 1, key.start_mark.column + 1
                    if not isinstance(key, yaml.ScalarNode):
                        what = f"a key can't be a {_kind(key)}"
                    elif key.value in first:
                        what = f"key {key.value!r} is given twice; first on line {first[key.value]}"
                    else:
                        first[key.value] = line
                        continue
                    problems.append(ConfigProblem(self.file, line, column, what))
            for child in _children(node):
                walk(child)

        walk(root)
        if problems:
            raise ConfigError(*problems)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _child(node: yaml.Node, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        # Merged keys come first, so the last match is the one that counts.
        return next(((key, value) for key, value in reversed(node.value) if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "mapping"
    return "list" if isinstance(node, yaml.SequenceNode) else "single value"
