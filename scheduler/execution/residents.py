"""What the steps' `setup` keeps in a worker process: reserved once, shared by attempts, evicted when idle."""

import contextlib
import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from memcore.info import bytes_text
from memcore.memory_type import GpuId
from pools.holder import held_by
from pools.oom import is_oom
from scheduler.execution.errors import shortened
from scheduler.images.errors import said
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import ResolvedStep

UNDECLARED_BYTES = 1 << 20
"""What state that declares no size is planned with: the dispatcher knows where state is by its bytes."""

HOST_TYPE = "numpy"

_log = logging.getLogger(__name__)


class SetupFailedError(RuntimeError):
    """A step's `setup` raised; the message names the step and what it said."""

    def __init__(self, step: str, error: str) -> None:
        super().__init__(step, error)

    def __str__(self) -> str:
        step, error = self.args
        return f"setup of step {step} failed: {error}"


class PlacedStep(Protocol):
    """A step of a chain, with the memory type and the device that it runs on."""

    @property
    def resolved(self) -> ResolvedStep: ...
    @property
    def memory_type(self) -> str: ...
    @property
    def gpu_id(self) -> GpuId: ...


Step = TypeVar("Step", bound=PlacedStep)


@dataclass(frozen=True, slots=True)
class ChainState:
    """What the `setup` of a chain's steps keeps, all together.

    `name` is the same in every process; it tells steps, memory types and parameters. Bytes as declared, on
    the device and in host memory.
    """

    name: str
    device_bytes: int
    host_bytes: int


def chain_state(steps: Iterable[tuple[ResolvedStep, str]], *, on_gpu: bool) -> ChainState | None:
    """The state of a chain, given each step's memory type; None if no step has any.

    On a GPU what a step keeps for NumPy is in host memory, and everything is where there is no GPU. Equal
    steps share their state.
    """
    found = {(step.key, memory_type): (step, memory_type) for step, memory_type in steps if step.keeps_state}
    if not found:
        return None
    device_bytes = host_bytes = 0
    for step, memory_type in found.values():
        declared = step.resident_bytes(memory_type)
        nbytes = UNDECLARED_BYTES if declared is None else declared
        if on_gpu and memory_type != HOST_TYPE:
            device_bytes += nbytes
        else:
            host_bytes += nbytes
    names = "+".join(f"{step.name}({memory_type})" for step, memory_type in found.values())
    keys = " ".join(step.key for step, _ in found.values())
    return ChainState(f"{names} {hashlib.sha256(keys.encode()).hexdigest()[:8]}", device_bytes, host_bytes)


@dataclass(frozen=True, slots=True)
class Use:
    """An attempt's use of state. `setup_s`: seconds until the state was there, whoever set it up."""

    setup_s: float = 0.0


class Residents:
    """The state of the chains in one worker process, by the name of `ChainState`.

    Parameters
    ----------
    hold
        Reserves bytes of the worker's device under a name until the context ends; raises if they aren't
        there, before anything is set up.
    on_gpu
        False in a CPU worker, where state lies in host memory that each attempt reserves with its own.
    device_in_host
        True for a virtual GPU: what is kept there takes host memory too.
    refused
        What `hold` raises if the bytes aren't there.
    measured
        Bytes that this process holds on its device now and can't give back by itself, None while that tells
        nothing of the state, as where other attempts work beside it.
    measured_on_host
        The same for host memory.
    reclaim
        Gives back that many idle bytes (0 for state in host memory): what was torn down is in allocators'
        caches still.
    on_evicted
        Told the names of what `make_room` and `give_up_on_host` have evicted.

    Notes
    -----
    Thread-safe. `hold`, `setup`, `teardown` and `reclaim` are called without a lock: an attempt waits only
    for state of its own name that another one sets up or tears down.

    State that turns out larger than declared is reserved as large as it is, if the bytes are there. If they
    aren't, it is used as it is: the bytes are held already, and admission counts what is held.
    """

    def __init__(
        self,
        hold: Callable[[str, int], contextlib.AbstractContextManager[None]],
        *,
        on_gpu: bool = True,
        device_in_host: bool = False,
        refused: type[Exception] | tuple[type[Exception], ...] = (),
        measured: Callable[[], int | None] = lambda: None,
        measured_on_host: Callable[[], int | None] = lambda: None,
        reclaim: Callable[[int], object] = lambda _: None,
        on_evicted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._hold = hold
        self._on_gpu = on_gpu
        self._device_in_host = device_in_host
        self._refused = refused
        self._measured = measured
        self._measured_on_host = measured_on_host
        self._reclaim = reclaim
        self._on_evicted = on_evicted
        self._kept: dict[str, _Kept] = {}
        self._expected: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closed = False

    @contextlib.contextmanager
    def in_use(self, steps: Sequence[Step], make_context: Callable[[Step], StepContext]) -> Iterator[Use]:
        """Set up what the steps keep, if it isn't there, and keep it while the block runs.

        Raises
        ------
        SetupFailedError
            A `setup` raised. It leaves nothing behind. Out of memory passes through as it is, and so does
            what `hold` raises.
        """
        state = chain_state(((each.resolved, each.memory_type) for each in steps), on_gpu=self._on_gpu)
        if state is None:
            yield Use()
            return
        began = time.monotonic()
        kept = self._take(state, steps, make_context)
        try:
            yield Use(time.monotonic() - began)
        finally:
            self._let_go(kept)

    def evict(self, name: str) -> bool:
        """Tear down state that no attempt uses, and give its bytes back.

        True if it isn't here now, which it may never have been; False if an attempt uses it or sets it up.
        """
        with self._changed:
            kept = self._kept.get(name)
            if kept is None:
                return True
            if not kept.idle:
                return False
            kept.ready = False
        self._put_away(kept)
        return True

    def make_room(self, *, but: str = "") -> str | None:
        """Evict the state that has been idle longest, all but one name; its name, None if nothing is idle.

        For a worker that would have to turn an attempt away: the dispatcher knows state by what it declares.
        """
        kept = self._put_one_away(lambda kept: kept.name != but)
        if kept is None:
            return None
        self._on_evicted(kept.name)
        return kept.name

    @contextlib.contextmanager
    def expected(self, name: str) -> Iterator[None]:
        """An attempt counts on the state of that name, which it will use inside the block: see `unused`."""
        with self._changed:
            self._expected[name] += 1
        try:
            yield
        finally:
            with self._changed:
                self._expected[name] -= 1

    def unused(self, now: float, for_s: float) -> dict[str, int]:
        """Bytes on the device of state that nothing has used for so long, the longest unused first.

        None of it was set up for longer than it is unused, and no attempt counts on it.
        """
        with self._changed:
            return {
                kept.name: kept.nbytes
                for kept in self._kept.values()
                if kept.idle
                and kept.nbytes
                and not self._expected[kept.name]
                and now - kept.used_at >= max(for_s, kept.setup_s)
            }

    def idle_on_host(self, name: str | None = None) -> int:
        """Bytes that state which no attempt uses holds in host memory; all of it, or that of one name."""
        with self._changed:
            kept = [each for each in self._kept.values() if name is None or each.name == name]
            return sum(each.host_bytes for each in kept if each.idle)

    def give_up_on_host(self, nbytes: int, *, but: Collection[str] = ()) -> int:
        """Evict state with bytes in host memory, the longest unused first, until `nbytes` of them are free.

        Returns how many are. State of the names in `but` stays.
        """
        given = 0
        while given < nbytes:
            kept = self._put_one_away(lambda kept: kept.host_bytes > 0 and kept.name not in but)
            if kept is None:
                break
            given += kept.host_bytes
            self._on_evicted(kept.name)
        return given

    def names(self) -> tuple[str, ...]:
        """The state that is here, set up; the longest unused first."""
        with self._changed:
            return tuple(name for name, kept in self._kept.items() if kept.ready)

    def sizes(self) -> dict[str, int]:
        """Bytes that each state holds on the device: as declared, or as measured where that was more."""
        with self._changed:
            return {name: kept.nbytes for name, kept in self._kept.items() if kept.ready}

    @property
    def nbytes(self) -> int:
        """Bytes that all of it holds on the device."""
        return sum(self.sizes().values())

    def close(self) -> None:
        """Tear down what no attempt uses; the rest goes when its last attempt has ended."""
        with self._changed:
            self._closed = True
        while self._put_one_away() is not None:
            pass

    def _take(
        self, state: ChainState, steps: Sequence[Step], make_context: Callable[[Step], StepContext]
    ) -> "_Kept":
        with self._changed:
            self._changed.wait_for(lambda: state.name not in self._kept or self._kept[state.name].ready)
            kept = self._kept.get(state.name)
            if kept is not None:
                kept.users += 1
                return kept
            in_host = state.host_bytes + (state.device_bytes if self._device_in_host else 0)
            kept = self._kept[state.name] = _Kept(state.name, state.device_bytes, in_host)
        began = time.monotonic()
        try:
            self._set_up(kept, steps, make_context)
        except BaseException:
            self._forget(kept)
            raise
        with self._changed:
            kept.ready, kept.users, kept.setup_s = True, 1, time.monotonic() - began
            self._changed.notify_all()
        return kept

    def _set_up(
        self, kept: "_Kept", steps: Sequence[Step], make_context: Callable[[Step], StepContext]
    ) -> None:
        with contextlib.ExitStack() as undo:
            held = undo.enter_context(contextlib.ExitStack())
            if kept.nbytes:
                held.enter_context(self._hold(kept.name, kept.nbytes))
            # Before the reservation goes: else others are admitted to what caches still hold.
            undo.callback(lambda: self._reclaim(kept.nbytes))
            before = self._measured() if kept.nbytes else None
            host_before = self._measured_on_host()
            for step in steps:
                name, context = step.resolved.name, make_context(step)
                try:
                    with held_by(None, name):
                        give_up = step.resolved.set_up(context)
                except (Exception, SystemExit, KeyboardInterrupt) as error:
                    if is_oom(error):
                        raise
                    raise SetupFailedError(name, shortened(said(error))) from error
                undo.callback(_torn_down, name, give_up)
            self._hold_the_rest(kept, before, held)
            host_after = self._measured_on_host()
            if host_before is not None and host_after is not None:
                kept.host_bytes = max(kept.host_bytes, host_after - host_before)
            kept.undo = undo.pop_all()

    def _hold_the_rest(self, kept: "_Kept", before: int | None, held: contextlib.ExitStack) -> None:
        after = None if before is None else self._measured()
        if before is None or after is None or after - before <= kept.nbytes:
            return
        declared, kept.nbytes = kept.nbytes, after - before
        try:
            held.enter_context(self._hold(kept.name, kept.nbytes - declared))
        except self._refused as error:
            more = bytes_text(kept.nbytes - declared)
            _log.warning("%s keeps %s more than was reserved for it: %s", kept.name, more, error)

    def _let_go(self, kept: "_Kept") -> None:
        with self._changed:
            kept.users -= 1
            kept.used_at = time.monotonic()
            # The order of the dictionary is that in which state was last used.
            self._kept[kept.name] = self._kept.pop(kept.name)
            if kept.users or not self._closed:
                return
            kept.ready = False
        self._put_away(kept)

    def _put_one_away(self, wanted: Callable[["_Kept"], bool] = lambda _: True) -> "_Kept | None":
        with self._changed:
            kept = next((each for each in self._kept.values() if each.idle and wanted(each)), None)
            if kept is None:
                return None
            kept.ready = False
        self._put_away(kept)
        return kept

    def _put_away(self, kept: "_Kept") -> None:
        try:
            kept.undo.close()
        finally:
            self._forget(kept)

    def _forget(self, kept: "_Kept") -> None:
        with self._changed:
            del self._kept[kept.name]
            self._changed.notify_all()


@dataclass(slots=True, eq=False)
class _Kept:
    """State and how many attempts use it; not `ready` while it is set up or torn down.

    `nbytes` are those on the device. Its setup took `setup_s`; it was last used at `used_at` (seconds,
    monotonic).
    """

    name: str
    nbytes: int
    host_bytes: int = 0
    ready: bool = False
    users: int = 0
    setup_s: float = 0.0
    used_at: float = 0.0
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def idle(self) -> bool:
        return self.ready and not self.users


def _torn_down(step: str, give_up: Callable[[], None]) -> None:
    try:
        give_up()
    except (Exception, SystemExit, KeyboardInterrupt):  # noqa: BLE001  a user's: the others' must go too
        _log.exception("teardown of step %s failed", step)
