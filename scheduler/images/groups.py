"""Several named stacks in one job: one of each name from every group of stacks that belong together.

    group_stacks(sources, {"image": {"channel": 1}, "nuclei": {"channel": 2}})

gives a group for each well and site, with the stack of channel 1 as `image`, that of channel 2 as `nuclei`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scheduler.images.errors import InputError
from scheduler.images.patterns import Select, check_select, natural_key, selected
from scheduler.images.stack import StackSource

_Fields = tuple[tuple[str, str], ...]
_NAMED = 6  # how many faults a message spells out


@dataclass(frozen=True, slots=True)
class StackGroup:
    """The stacks of one job: `fields` are those that they share, `stacks` has one for each input's name."""

    fields: tuple[tuple[str, str], ...]
    stacks: tuple[tuple[str, StackSource], ...]

    @property
    def name(self) -> str:
        """The shared fields as one word, as a StackSource's name."""
        return "_".join(f"{field}-{value}" for field, value in self.fields) or "stack"

    def __getitem__(self, name: str) -> StackSource:
        return dict(self.stacks)[name]


def group_stacks(sources: Sequence[StackSource], inputs: Mapping[str, Select]) -> list[StackGroup]:
    """One group for each combination of the fields that no input selects by, in natural order.

    A stack that no input selects is left out. A stack known to be unreadable lacks the fields that its file
    would give: it belongs to each group that agrees with it in the others and has no such stack, or else is a
    group that fails by itself.

    Raises
    ------
    InputError
        No inputs, a field that not every stack has, a choice that chooses nothing, or groups that lack a
        stack of some name or have several; each is named.
    """
    if not inputs:
        raise InputError("inputs: name at least one stack, as {image: {channel: 1}}")
    chosen_by = {name for select in inputs.values() for name in select}
    placed = [source for source in sources if not source.problem or chosen_by <= dict(source.fields).keys()]
    if not placed:
        raise InputError("inputs: there is no stack that can be read")
    known = [name for name in dict(placed[0].fields) if all(name in dict(one.fields) for one in placed)]
    values = {name: {dict(source.fields)[name] for source in placed} for name in known}
    for name, select in inputs.items():
        try:
            check_select(select, known, values)
        except InputError as error:
            raise InputError(f"inputs: {name}: {error}") from error
    groups: dict[_Fields, dict[str, list[StackSource]]] = {}
    wider = _Wider(groups)
    for source in sorted(placed, key=lambda source: bool(source.problem)):
        shared = tuple((name, value) for name, value in source.fields if name not in chosen_by)
        for name, select in inputs.items():
            if selected(dict(source.fields), select):
                among = wider.of(shared) if source.problem else []
                for one in [one for one in among if name not in groups[one]] or [shared]:
                    groups.setdefault(one, {}).setdefault(name, []).append(source)
    faults = [
        f"{_named(shared)} has {len(found.get(name, []))} stacks for {name!r} ({dict(select)})"
        for shared, found in groups.items()
        for name, select in inputs.items()
        if len(found.get(name, [])) != 1
    ]
    if faults:
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise InputError(f"inputs: each name needs one stack: {'; '.join(faults[:_NAMED])}{more}")
    whole = [
        StackGroup(shared, tuple((name, found[name][0]) for name in inputs))
        for shared, found in groups.items()
    ]
    unreadable = [
        StackGroup(source.fields, tuple((name, source) for name in inputs))
        for source in sources
        if source.problem and not chosen_by <= dict(source.fields).keys()
    ]
    return sorted(whole + unreadable, key=lambda group: [natural_key(value) for _, value in group.fields])


class _Wider:
    """The groups that have given fields and more; to be asked once all that have more are there."""

    def __init__(self, groups: Mapping[_Fields, object]) -> None:
        self._groups = groups
        self._by_names: dict[tuple[str, ...], dict[_Fields, list[_Fields]]] = {}

    def of(self, fields: _Fields) -> list[_Fields]:
        names = tuple(name for name, _ in fields)
        if names not in self._by_names:
            found = self._by_names[names] = defaultdict(list)
            for shared in self._groups:
                values = dict(shared)
                if len(shared) > len(names) and values.keys() >= set(names):
                    found[tuple((name, values[name]) for name in names)].append(shared)
        return self._by_names[names].get(fields, [])


def _named(shared: _Fields) -> str:
    return " ".join(f"{name} {value}" for name, value in shared) or "the folder"
