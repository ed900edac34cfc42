"""CUDA_VISIBLE_DEVICES, which CUDA obeys and NVML ignores.

What a process inherits bounds what Stackyard may touch.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that NVML lists: its own UUID, and for a MIG instance the GPU's number and UUID."""

    uuid: str
    index: int
    parent: str = ""


def visible_devices(candidates: Sequence[Candidate], variable: str | None) -> tuple[Candidate, ...]:
    """The candidates that a value of CUDA_VISIBLE_DEVICES leaves, in its order.

    Entries are indices (counted as NVML does, the PCI order, which is CUDA's with
    CUDA_DEVICE_ORDER=PCI_BUS_ID), UUIDs or unambiguous beginnings of them, and MIG UUIDs. As in CUDA an entry
    that names nothing hides itself and all that follow; "" and "-1" hide everything, None (not set) nothing.
    An index of a GPU in MIG mode means its instances. Source: CUDA C++ Programming Guide, "CUDA Environment
    Variables".
    """
    if variable is None:
        return tuple(candidates)
    chosen: list[Candidate] = []
    for entry in variable.split(","):
        named = _named(candidates, entry.strip())
        if not named or any(candidate in chosen for candidate in named):
            break
        chosen.extend(named)
    return tuple(chosen)


def _named(candidates: Sequence[Candidate], entry: str) -> list[Candidate]:
    if entry.isdigit():
        return [candidate for candidate in candidates if candidate.index == int(entry)]
    if not entry.startswith(("GPU-", "MIG-")):
        return []
    exact = [candidate for candidate in candidates if entry in (candidate.uuid, candidate.parent)]
    if exact:
        return exact
    begins = [candidate for candidate in candidates if candidate.uuid.startswith(entry)]
    return begins if len(begins) == 1 else []
