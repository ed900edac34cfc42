"""A worker process as the driver sees it: what is in flight there, and what else it may be given."""

from dataclasses import dataclass, field

from distributed import Future

from scheduler.core.model import DeviceKind
from scheduler.execution.messages import Hello
from scheduler.execution.task import AttemptKey, AttemptTask


@dataclass(eq=False, slots=True)
class WorkerProcess:
    """One worker process, and the attempts that were given to it.

    Attributes
    ----------
    in_flight
        What was given to it, in that order, with the Dask task that each attempt is a part of.
    outbox
        Those of them that are still to be sent; pickled, but for what carries large arrays.
    unfetched
        Those that have ended, and whose arrays are still there.
    asked_back
        Those that it was asked to give back if they haven't begun.
    leaving
        Why it gets nothing more, if it doesn't.
    retired
        It is replaced once nothing is in flight there.
    let_go
        It is closed, together with its nanny, once nothing is in flight there.
    outgrown
        It is ended since it has outgrown its memory limit.
    ended_by_us
        What is in flight there isn't to blame for its end.
    left_at
        When the scheduler removed it, on the monotonic clock; None while it is there.
    drains
        It may end its attempts all the same.
    """

    hello: Hello
    in_flight: dict[AttemptKey, Future | None] = field(default_factory=dict)
    outbox: dict[AttemptKey, AttemptTask | bytes] = field(default_factory=dict)
    unfetched: set[AttemptKey] = field(default_factory=set)
    asked_back: set[AttemptKey] = field(default_factory=set)
    host_bytes: dict[AttemptKey, int] = field(default_factory=dict)
    leaving: str = ""
    retired: bool = False
    let_go: bool = False
    outgrown: bool = False
    ended_by_us: bool = False
    left_at: float | None = None
    drains: bool = False

    @property
    def address(self) -> str:
        """Its Dask address; a process that takes its place has another one."""
        return self.hello.address

    @property
    def on_cpu(self) -> bool:
        """True if a batch of attempts runs there in each of its slots."""
        return self.hello.device.kind is DeviceKind.CPU

    def holds(self, nbytes: int) -> bool:
        """True if it may take that much host memory in all."""
        return not 0 < self.hello.process_bytes < nbytes

    def holds_beside(self, nbytes: int) -> bool:
        """The same beside what is in flight here, as far as that can run at the same time."""
        together = sorted([*self.host_bytes.values(), nbytes], reverse=True)
        return self.holds(sum(together[: 2 * self.hello.slots] if self.on_cpu else together))

    def due(self) -> list[list[AttemptKey]]:
        """What of the outbox is to be sent now, each part as one Dask task that runs it one after another.

        A task costs more than a very short job. So those that would wait in the process anyhow go together,
        when no more is left there than one running and one ready attempt for each slot.
        """
        together = [key for key, task in self.outbox.items() if self.on_cpu and isinstance(task, bytes)]
        apart = [[key] for key in self.outbox if key not in together]
        slots, lanes = self.hello.slots, self._lanes
        if len(lanes) >= slots and sum(map(len, lanes)) > 2 * slots:
            return apart
        return apart + [part for lane in range(slots) if (part := together[lane::slots])]

    @property
    def _lanes(self) -> list[list[AttemptKey]]:
        """What was sent and may not have ended, by Dask task, in their order."""
        lanes: dict[int, list[AttemptKey]] = {}
        for key, future in self.in_flight.items():
            if future is not None and key not in self.unfetched:
                lanes.setdefault(id(future), []).append(key)
        return list(lanes.values())

    @property
    def may_have_begun(self) -> frozenset[AttemptKey]:
        """The attempts that may run there just now; the last words of one before them may be missing."""
        if not self.on_cpu:
            return frozenset(self.in_flight)
        slots, lanes = self.hello.slots, self._lanes
        running = [key for lane in lanes[:slots] for key in lane[:3]]
        return frozenset(running + [key for lane in lanes[slots : 2 * slots] for key in lane[:2]])

    @property
    def usable(self) -> bool:
        """True if it may be given work."""
        return not self.leaving and self.left_at is None
