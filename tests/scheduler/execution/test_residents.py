"""What steps' `setup` keeps: reserved and set up once, shared, evicted when idle and never under a job."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from memcore import MemoryType
from memcore.errors import OutOfDeviceMemoryError
from pools import PoolSet
from pools.holder import held_by
from scheduler.execution.chain import ChainStep
from scheduler.execution.residents import (
    UNDECLARED_BYTES,
    ChainState,
    Residents,
    SetupFailedError,
    chain_state,
)
from scheduler.steps.context import StepContext
from scheduler.steps.resolve import ResolvedStep, resolve_step

NAME = "stackyard_resident_steps"
MODULE = """
import threading
from memcore.errors import OutOfDeviceMemoryError

events = []
on_setup = None

class Model:
    declare = {"input": ["numpy", "torch"], "splittable": "zyx"}
    resident_bytes = 100

    def __init__(self, *, weights: str = "small"):
        self.weights = weights

    def setup(self, context):
        events.append(("set up", self.weights, context.memory_type, context.job_id))
        if on_setup is not None:
            on_setup(self, context)

    def __call__(self, stack, *, threshold: float = 0.5):
        return stack

    def teardown(self):
        events.append(("torn down", self.weights))

class Second(Model):
    resident_bytes = 30

class Undeclared(Model):
    resident_bytes = None

class NoWeights(Model):
    def setup(self, context):
        raise OSError("no such file: weights.pt")

class TooLarge(Model):
    def setup(self, context):
        raise OutOfDeviceMemoryError("full", requested=1, free=0, capacity=1)

class Exits(Model):
    def setup(self, context):
        raise SystemExit(3)

class Clumsy(Model):
    def teardown(self):
        super().teardown()
        raise RuntimeError("stuck")

class Stateless:
    declare = {"input": ["numpy", "torch"]}

    def __call__(self, stack):
        return stack
"""

Place = Callable[..., ChainStep]


class NoRoomError(Exception):
    """The bytes aren't there."""


class Book:
    """Reservations of one device, in the order in which they are made and given back."""

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        self.reserved: list[tuple[str, int]] = []
        self.log: list[str] = []

    @contextlib.contextmanager
    def hold(self, name: str, nbytes: int) -> Iterator[None]:
        if self.used + nbytes > self.capacity:
            raise NoRoomError(f"{nbytes} of {self.capacity - self.used}")
        self.reserved.append((name, nbytes))
        self.log.append(f"+{nbytes}")
        try:
            yield
        finally:
            self.reserved.remove((name, nbytes))
            self.log.append(f"-{nbytes}")

    @property
    def used(self) -> int:
        return sum(nbytes for _, nbytes in self.reserved)


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    path = list(sys.path)
    resolve_step(f"{NAME}:Model", search_path=[str(tmp_path)])
    yield sys.modules[NAME]
    sys.path[:] = path
    del sys.modules[NAME]


@pytest.fixture
def place(tmp_path: Path, module: Any) -> Place:
    """A step of the module in a chain; equal ones are the same object, as in a worker."""
    resolved: dict[tuple[str, str], ResolvedStep] = {}

    def make(name: str, memory_type: str = "torch", **given: Any) -> ChainStep:
        key = name, repr(given)
        if key not in resolved:
            resolved[key] = resolve_step(f"{NAME}:{name}", with_=given, search_path=[str(tmp_path)])
        return ChainStep(resolved[key], memory_type, "cpu" if memory_type == "numpy" else 0)

    return make


def context(step: ChainStep, job_id: str = "A01") -> StepContext:
    return StepContext(step.memory_type, step.gpu_id, None, job_id)


def state_of(*steps: ChainStep, on_gpu: bool = True) -> ChainState:
    found = chain_state([(step.resolved, step.memory_type) for step in steps], on_gpu=on_gpu)
    assert found is not None
    return found


def use(residents: Residents, *steps: ChainStep) -> None:
    with residents.in_use(steps, context):
        pass


# What a chain keeps


def test_a_chains_state_is_what_its_steps_declare(place: Place) -> None:
    chain = [place("Model"), place("Stateless"), place("Second", "numpy")]
    found = state_of(*chain)
    assert (found.device_bytes, found.host_bytes) == (100, 30)
    assert found.name.startswith("Model(torch)+Second(numpy) ")
    on_cpu = state_of(*chain, on_gpu=False)
    assert (on_cpu.device_bytes, on_cpu.host_bytes, on_cpu.name) == (0, 130, found.name)
    assert chain_state([(place("Stateless").resolved, "torch")], on_gpu=True) is None


def test_state_that_declares_no_size_is_known_by_a_token(place: Place) -> None:
    assert state_of(place("Undeclared"), place("Second")).device_bytes == UNDECLARED_BYTES + 30


def test_equal_steps_share_their_state_and_others_do_not(place: Place, tmp_path: Path) -> None:
    twice = state_of(place("Model"), place("Model"))
    assert twice.device_bytes == 100
    assert twice == state_of(place("Model"))
    again = resolve_step(f"{NAME}:Model", search_path=[str(tmp_path)])
    assert state_of(ChainStep(again, MemoryType.TORCH, 0)) == twice
    names = {
        state_of(*steps).name
        for steps in (
            [place("Model")],
            [place("Model", weights="large")],
            [place("Model", "numpy")],
            [place("Second")],
            [place("Model"), place("Second")],
        )
    }
    assert len(names) == 5


# In a worker


def test_set_up_once_under_a_reservation_and_kept_when_idle(place: Place, module: Any) -> None:
    book = Book()
    residents = Residents(book.hold)
    model = place("Model")
    name = state_of(model).name
    module.on_setup = lambda *_: book.log.append("set up")
    for _ in range(3):
        with residents.in_use([model, place("Stateless")], context):
            assert book.reserved == [(name, 100)]
    assert book.log == ["+100", "set up"]
    assert residents.names() == (name,)
    assert residents.sizes() == {name: 100}
    assert residents.nbytes == 100


def test_a_chain_without_state_reserves_nothing(place: Place) -> None:
    book = Book()
    residents = Residents(book.hold)
    use(residents, place("Stateless"))
    assert (book.log, residents.names()) == ([], ())


def test_state_on_a_cpu_is_reserved_by_the_attempts(place: Place, module: Any) -> None:
    book = Book()
    residents = Residents(book.hold, on_gpu=False)
    use(residents, place("Model"))
    assert book.log == []
    assert len(module.events) == 1
    assert residents.nbytes == 0


def test_eviction_tears_down_then_reclaims_then_gives_the_bytes_back(place: Place, module: Any) -> None:
    book = Book()
    residents = Residents(book.hold, reclaim=lambda nbytes: book.log.append(f"reclaim {nbytes}"))
    chain = [place("Model"), place("Second")]
    use(residents, *chain)
    module.events.clear()
    name = state_of(*chain).name
    assert residents.evict(name)
    assert module.events == [("torn down", "small")] * 2
    assert book.log == ["+130", "reclaim 130", "-130"]
    assert residents.names() == ()
    assert residents.evict(name), "it isn't there, which is what was asked for"
    use(residents, *chain)
    assert len(module.events) == 4


def test_state_in_use_is_not_evicted(place: Place, module: Any) -> None:
    residents = Residents(Book().hold)
    model = place("Model")
    name = state_of(model).name
    with residents.in_use([model], context):
        with residents.in_use([model], context):
            assert not residents.evict(name)
        assert not residents.evict(name)
        assert residents.make_room() is None
    assert len(module.events) == 1
    assert residents.evict(name)


class Telling(threading.Condition):
    """Says when a thread waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waited_for.set()
        return super().wait(timeout)


@pytest.mark.parametrize("fails", [False, True])
def test_of_two_attempts_that_want_it_at_once_one_sets_up_and_the_other_waits(
    place: Place, module: Any, fails: bool
) -> None:
    book = Book()
    residents = Residents(book.hold)
    telling = residents._changed = Telling()
    model = place("Model")
    in_setup, go_on = threading.Event(), threading.Event()

    def on_setup(*_: Any) -> None:
        module.on_setup = None
        in_setup.set()
        assert go_on.wait(30)
        if fails:
            raise OSError("no weights")

    module.on_setup = on_setup
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(use, residents, model)
        assert in_setup.wait(30)
        assert not residents.evict(state_of(model).name)
        second = threads.submit(use, residents, model)
        assert telling.waited_for.wait(30)
        go_on.set()
        second.result(timeout=30)
        if fails:
            with pytest.raises(SetupFailedError, match="no weights"):
                first.result(timeout=30)
        else:
            first.result(timeout=30)
    set_up = [event for event in module.events if event[0] == "set up"]
    assert len(set_up) == 1 + fails
    assert book.used == 100


def test_state_of_other_chains_is_set_up_meanwhile(place: Place, module: Any) -> None:
    residents = Residents(Book().hold)
    model, second = place("Model"), place("Second")

    def on_setup(*_: Any) -> None:
        module.on_setup = None
        # Were the first one's setup under a lock, this would wait for it for good.
        with ThreadPoolExecutor(1) as threads:
            threads.submit(use, residents, second).result(timeout=30)

    module.on_setup = on_setup
    use(residents, model)
    assert len(residents.names()) == 2


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "NoWeights",
            SetupFailedError,
            r"setup of step NoWeights failed: OSError: no such file: weights\.pt",
        ),
        ("Exits", SetupFailedError, "setup of step Exits failed: SystemExit: 3"),
        ("TooLarge", OutOfDeviceMemoryError, "full"),
    ],
)
def test_a_setup_that_fails_leaves_nothing_behind(
    place: Place, module: Any, name: str, error: type[Exception], message: str
) -> None:
    book = Book()
    residents = Residents(book.hold)
    with pytest.raises(error, match=message):
        use(residents, place("Second"), place(name))
    assert book.used == 0
    assert residents.names() == ()
    assert module.events == [("set up", "small", "torch", "A01"), ("torn down", "small")]
    assert residents.evict(state_of(place("Second"), place(name)).name)


def test_without_its_bytes_nothing_is_set_up(place: Place, module: Any) -> None:
    book = Book(99)
    residents = Residents(book.hold)
    with pytest.raises(NoRoomError):
        use(residents, place("Model"))
    assert module.events == []
    book.capacity = 100
    use(residents, place("Model"))
    assert len(module.events) == 1


def test_chains_that_share_a_step_keep_it_until_neither_has_it(place: Place, module: Any) -> None:
    residents = Residents(Book().hold)
    both, alone = [place("Model"), place("Second", weights="second")], [place("Model")]
    use(residents, *both)
    with residents.in_use(alone, context):
        assert residents.evict(state_of(*both).name)
        assert [event for event in module.events if event[0] == "torn down"] == [("torn down", "second")]
    residents.evict(state_of(*alone).name)
    assert module.events[-1] == ("torn down", "small")


# Sizes that were declared wrong


@pytest.mark.parametrize(
    ("name", "kept", "rest"), [("Model", 100, [75]), ("Undeclared", UNDECLARED_BYTES, [])]
)
def test_what_is_larger_than_declared_is_reserved_as_large_as_it_is(
    place: Place, name: str, kept: int, rest: list[int]
) -> None:
    book = Book()
    readings = iter([1000, 1175])
    residents = Residents(book.hold, refused=NoRoomError, measured=lambda: next(readings))
    model = place(name)
    use(residents, model)
    assert [nbytes for _, nbytes in book.reserved] == [kept, *rest]
    assert residents.nbytes == kept + sum(rest)
    residents.evict(state_of(model).name)
    assert book.used == 0


def test_the_rest_is_given_back_only_after_the_tearing_down(place: Place, module: Any) -> None:
    book = Book()
    readings = iter([0, 175])
    residents = Residents(
        book.hold,
        refused=NoRoomError,
        measured=lambda: next(readings),
        reclaim=lambda nbytes: book.log.append(f"reclaim {nbytes}"),
    )
    use(residents, place("Model"))
    residents.evict(state_of(place("Model")).name)
    assert book.log == ["+100", "+75", "reclaim 175", "-75", "-100"]


def test_without_room_for_the_rest_it_is_used_as_it_is(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    book = Book(150)
    readings = iter([0, 175])
    residents = Residents(book.hold, refused=NoRoomError, measured=lambda: next(readings))
    use(residents, place("Model"))
    assert book.used == 100
    assert residents.nbytes == 175
    assert "keeps 75 bytes more than was reserved" in caplog.text


@pytest.mark.parametrize("readings", [[None], [0, None], [500, 0]])
def test_a_measurement_that_tells_nothing_changes_nothing(place: Place, readings: list[int | None]) -> None:
    book = Book()
    found = iter(readings)
    residents = Residents(book.hold, refused=NoRoomError, measured=lambda: next(found))
    use(residents, place("Model"))
    assert residents.nbytes == book.used == 100


# Room for others


def test_room_is_made_by_what_has_been_idle_longest(place: Place) -> None:
    told: list[str] = []
    residents = Residents(Book().hold, on_evicted=told.append)
    steps = [place("Model", weights=name) for name in ("a", "b", "c")]
    a, b, c = (state_of(step).name for step in steps)
    for step in (*steps, steps[0]):
        use(residents, step)
    assert residents.names() == (b, c, a)
    assert residents.make_room(but=b) == c
    assert residents.make_room() == b
    assert residents.make_room(but=a) is None
    assert told == [c, b]
    assert residents.evict(a)
    assert told == [c, b], "who asks for it knows"


class Clock:
    """Stands for `time` in residents."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("scheduler.execution.residents.time", made)
    return made


def test_what_is_unused_is_told_the_longest_unused_first(place: Place, clock: Clock) -> None:
    residents = Residents(Book().hold)
    a, b = (place("Model", weights=name) for name in "ab")
    second = place("Second")
    for clock.now, step in ((10.0, a), (20.0, b)):
        use(residents, step)
    with residents.in_use([second], context):
        assert residents.unused(30.0, 20.5) == {}
        assert residents.unused(30.0, 20.0) == {state_of(a).name: 100}
        assert list(residents.unused(30.0, 0.0)) == [state_of(a).name, state_of(b).name]
    assert list(residents.unused(30.0, 0.0).values()) == [100, 100, 30]


def test_what_an_attempt_counts_on_is_in_use(place: Place, clock: Clock) -> None:
    residents = Residents(Book().hold)
    model = place("Model")
    name = state_of(model).name
    use(residents, model)
    with residents.expected(name), residents.expected(name), residents.expected("another"):
        assert residents.unused(99.0, 1.0) == {}
    assert residents.unused(99.0, 1.0) == {name: 100}


def test_what_takes_long_to_set_up_is_kept_for_as_long(place: Place, module: Any, clock: Clock) -> None:
    def load(*_: Any) -> None:
        clock.now += 60.0

    module.on_setup = load
    residents = Residents(Book().hold)
    use(residents, place("Model"))
    assert residents.unused(clock.now + 59.0, 1.0) == {}
    assert len(residents.unused(clock.now + 60.0, 1.0)) == 1


def test_what_lies_in_host_memory_is_no_room_on_the_device(place: Place, clock: Clock) -> None:
    residents = Residents(Book().hold)
    use(residents, place("Model", "numpy"))
    assert residents.unused(99.0, 1.0) == {}


def test_to_reserve_state_room_may_be_made_by_other_state(place: Place) -> None:
    book = Book(100)

    @contextlib.contextmanager
    def hold(name: str, nbytes: int) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(book.hold(name, nbytes))
            except NoRoomError:
                assert residents.make_room(but=name) is not None
                held.enter_context(book.hold(name, nbytes))
            yield

    residents = Residents(hold)
    for weights in ("a", "b", "a"):
        use(residents, place("Model", weights=weights))
    assert len(residents.names()) == 1
    assert book.used == 100


def test_a_teardown_that_fails_is_told_and_costs_nobody_anything(
    place: Place, module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    book = Book()
    residents = Residents(book.hold)
    chain = [place("Model"), place("Clumsy")]
    use(residents, *chain)
    assert residents.evict(state_of(*chain).name)
    assert book.used == 0
    assert [event[0] for event in module.events] == ["set up", "set up", "torn down", "torn down"]
    assert "teardown of step Clumsy failed" in caplog.text
    assert "RuntimeError: stuck" in caplog.text


def test_close_tears_down_what_is_idle_and_the_rest_after_its_last_attempt(place: Place, module: Any) -> None:
    book = Book()
    told: list[str] = []
    residents = Residents(book.hold, on_evicted=told.append)
    idle, busy = place("Model", weights="idle"), place("Model", weights="busy")
    use(residents, idle)
    with residents.in_use([busy], context):
        with residents.in_use([busy], context):
            residents.close()
        assert module.events[-1] == ("torn down", "idle")
        assert book.used == 100
    assert module.events[-1] == ("torn down", "busy")
    assert (book.used, residents.names(), told) == (0, (), [])


def test_what_setup_leases_is_no_leak_of_the_job_that_came_first(place: Place, module: Any) -> None:
    with PoolSet(host_limit="1MiB") as pools:
        pool = pools.pool("numpy", "cpu")
        kept = []
        module.on_setup = lambda *_: kept.append(pool.lease((8,), "uint8"))
        residents = Residents(Book().hold)

        def in_pool(step: ChainStep) -> StepContext:
            return StepContext(step.memory_type, step.gpu_id, pool, "A01")

        with held_by("A01"), residents.in_use([place("Model")], in_pool):
            pass
        (lease,) = pools.leases()
        assert (lease.job, lease.step) == (None, "Model")
        assert pools.end_job("A01") == []
        kept[0].release()
