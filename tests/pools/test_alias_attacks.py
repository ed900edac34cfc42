"""While anything still sees an array, in whatever way, no reuse of the pool may change what it sees."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from memcore.host import HostBuffer
from pools import ArrayPool, PoolSet
from pools.block import Block
from pools.host_store import HostStore
from pools.store import Released
from tests.cuda import on_cuda

SHAPE = (4, 8, 16)
DTYPE = np.float32
Attack = Callable[[np.ndarray], Callable[[], Any]]
"""Takes the lent array and returns a reader: what it reads must stay as the array was filled."""

ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__] = function
    return function


@attack
def a_slice(array: np.ndarray) -> Callable[[], Any]:
    part = array[1:3, ::2]
    return lambda: part


@attack
def a_slice_of_a_slice(array: np.ndarray) -> Callable[[], Any]:
    part = array[1:][1:].T[::-1]
    return lambda: part


@attack
def another_dtype(array: np.ndarray) -> Callable[[], Any]:
    raw = array.view(np.uint32).reshape(-1)
    return lambda: raw.view(DTYPE)


@attack
def a_memoryview(array: np.ndarray) -> Callable[[], Any]:
    view = memoryview(array)
    return lambda: np.asarray(view)


@attack
def a_memoryview_of_a_slice(array: np.ndarray) -> Callable[[], Any]:
    view = memoryview(array[2]).cast("B")[16:]
    return lambda: np.frombuffer(view, DTYPE)


@attack
def a_flat_iterator(array: np.ndarray) -> Callable[[], Any]:
    flat = array[1].flat
    return lambda: flat[:]


@attack
def a_ctypes_pointer(array: np.ndarray) -> Callable[[], Any]:
    import ctypes

    pointer = array[1].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return lambda: pointer[5]


@attack
def an_unconsumed_capsule(array: np.ndarray) -> Callable[[], Any]:
    torch = pytest.importorskip("torch", reason="needs torch")
    capsule: Any = array[1].__dlpack__()
    kept: list[Any] = []

    def read() -> Any:
        if not kept:
            kept.append(torch.utils.dlpack.from_dlpack(capsule))
        return kept[0].numpy()

    read.rounds_before_reading = 20  # type: ignore[attr-defined]
    return read


@attack
def only_the_owner(array: np.ndarray) -> Callable[[], Any]:
    owner = array.base
    return lambda: np.asarray(owner)[:64].view(DTYPE)


@attack
def a_closure_of_a_generator(array: np.ndarray) -> Callable[[], Any]:
    def values() -> Iterator[Any]:
        inner = array[1]
        while True:
            yield inner

    running = values()
    next(running)
    return lambda: next(running)


@attack
def a_reference_cycle(array: np.ndarray) -> Callable[[], Any]:
    cycle: list[Any] = [array[1:]]
    cycle.append(cycle)
    return lambda: cycle[0]


@attack
def a_traceback(array: np.ndarray) -> Callable[[], Any]:
    def fail(inner: np.ndarray) -> None:
        raise ValueError(inner.shape)

    try:
        fail(array[1])
    except ValueError as error:
        caught = error
    return lambda: caught.__traceback__.tb_next.tb_frame.f_locals["inner"]


@attack
def another_thread(array: np.ndarray) -> Callable[[], Any]:
    asked, answered, done = threading.Event(), threading.Event(), threading.Event()
    answers: list[Any] = []

    def hold(inner: np.ndarray) -> None:
        while asked.wait(20) and not done.is_set():
            asked.clear()
            answers.append(inner.copy())
            answered.set()

    thread = threading.Thread(target=hold, args=(array[1:],), daemon=True)
    thread.start()

    def read() -> Any:
        answered.clear()
        asked.set()
        assert answered.wait(20)
        return answers.pop()

    def stop() -> None:
        done.set()
        asked.set()
        thread.join()

    read.stop = stop  # type: ignore[attr-defined]
    return read


@attack
def torch_from_numpy(array: np.ndarray) -> Callable[[], Any]:
    torch = pytest.importorskip("torch", reason="needs torch")
    tensor = torch.from_numpy(array[1:])[::2]
    return lambda: tensor.numpy()


@attack
def torch_from_dlpack(array: np.ndarray) -> Callable[[], Any]:
    torch = pytest.importorskip("torch", reason="needs torch")
    tensor = torch.from_dlpack(array)[1]
    return lambda: tensor.numpy()


@attack
def only_a_torch_storage(array: np.ndarray) -> Callable[[], Any]:
    torch = pytest.importorskip("torch", reason="needs torch")
    storage = torch.from_numpy(array).untyped_storage()
    return lambda: torch.empty(0, dtype=torch.float32).set_(storage).numpy()


@attack
def saved_for_backward(array: np.ndarray) -> Callable[[], Any]:
    torch = pytest.importorskip("torch", reason="needs torch")
    weight = torch.ones((), requires_grad=True)
    loss = (weight * torch.from_numpy(array)).mean()
    return lambda: torch.autograd.grad(loss, weight, retain_graph=True)[0].numpy()


@attack
def an_unconsumed_torch_capsule(array: np.ndarray) -> Callable[[], Any]:
    torch = pytest.importorskip("torch", reason="needs torch")
    capsule: Any = torch.utils.dlpack.to_dlpack(torch.from_numpy(array))
    kept: list[Any] = []

    def read() -> Any:
        if not kept:
            kept.append(torch.utils.dlpack.from_dlpack(capsule))
        return kept[0].numpy()

    read.rounds_before_reading = 20  # type: ignore[attr-defined]
    return read


@attack
def jax_device_put(array: np.ndarray) -> Callable[[], Any]:
    jax = pytest.importorskip("jax", reason="needs jax")
    put = jax.device_put(array)
    assert put.unsafe_buffer_pointer() == array.ctypes.data  # it does alias, or this is no attack
    return lambda: np.asarray(put)


@attack
def jax_from_dlpack(array: np.ndarray) -> Callable[[], Any]:
    jax = pytest.importorskip("jax", reason="needs jax")
    imported = jax.numpy.from_dlpack(array)
    return lambda: np.asarray(imported)


@attack
def a_numpy_view_of_a_jax_array(array: np.ndarray) -> Callable[[], Any]:
    jax = pytest.importorskip("jax", reason="needs jax")
    view = np.asarray(jax.device_put(array))[1]
    return lambda: view


@attack
def a_running_jit(array: np.ndarray) -> Callable[[], Any]:
    jax = pytest.importorskip("jax", reason="needs jax")

    @jax.jit
    def slowly(values: Any) -> Any:
        # runs for a while before it looks at the values
        spin = jax.lax.fori_loop(0, 2000, lambda _, x: x @ x * 0.5, jax.numpy.eye(64))
        return values + spin[0, 1]

    slowly(np.zeros(SHAPE, DTYPE)).block_until_ready()
    result = slowly(array)
    return lambda: np.asarray(result)


@attack
def tensorflow_from_dlpack(array: np.ndarray) -> Callable[[], Any]:
    tensorflow = pytest.importorskip("tensorflow", reason="needs tensorflow")
    tensor = tensorflow.experimental.dlpack.from_dlpack(array.__dlpack__())
    return lambda: tensor.numpy()


@attack
def a_tensorflow_variable(array: np.ndarray) -> Callable[[], Any]:
    tensorflow = pytest.importorskip("tensorflow", reason="needs tensorflow")
    variable = tensorflow.Variable(tensorflow.experimental.dlpack.from_dlpack(array.__dlpack__()))
    return lambda: variable.numpy()


def survives(pool: ArrayPool, make_alias: Attack) -> bool:
    """Whether the alias reads what was written, while three threads use the pool's buffers."""
    lease = pool.lease(SHAPE, DTYPE)
    array = lease.array
    array[:] = 7
    read = make_alias(array)
    lease.end()
    del array
    stop = threading.Event()

    def reuse(value: int) -> None:
        while not stop.is_set():
            with pool.acquire(SHAPE, DTYPE) as other:
                other[:] = value
            del other

    threads = [threading.Thread(target=reuse, args=(value,)) for value in (100, 200)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(60):
            with pool.acquire(SHAPE, DTYPE) as other:
                other[:] = -turn
            del other
            if turn >= getattr(read, "rounds_before_reading", 0) and not (np.asarray(read()) == 7).all():
                return False
        return True
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        getattr(read, "stop", lambda: None)()


@pytest.fixture
def pool() -> ArrayPool:
    return ArrayPool("1MiB")


@pytest.mark.parametrize("name", ATTACKS)
def test_no_live_alias_sees_a_change(pool: ArrayPool, name: str) -> None:
    assert survives(pool, ATTACKS[name])
    # with the alias gone the buffer comes back: safety by never recycling would be no pool
    gc.collect()
    if name == "a_running_jit":
        import jax

        jax.numpy.zeros(1).block_until_ready()  # JAX lets go at its next operation
        gc.collect()
    assert pool.leases() == []


class RefcountStore(HostStore):
    """The obvious design, which is wrong: a finalizer on the array that was lent.

    NumPy makes the base of a view the array that owns the memory, so that views don't keep the lent array.
    """

    def owner(self, block: Block, released: Released, *, frozen: bool) -> Any:
        return _Token(block, released)

    def lend(self, owner: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        base = HostBuffer(owner.block).array(shape, dtype)
        owner.block.pending = None
        array = np.ndarray(shape, dtype, np.asarray(base))
        lent = array.view()  # its base is `array`'s buffer, and so is that of each of its views
        weakref.finalize(lent, owner.released, owner.block).atexit = False
        return lent


class _Token:
    __slots__ = ("__weakref__", "block", "released")

    def __init__(self, block: Block, released: Released) -> None:
        self.block = block
        self.released = released


@pytest.mark.parametrize(
    "name", ["a_slice", "a_slice_of_a_slice", "torch_from_numpy", "a_memoryview_of_a_slice"]
)
def test_the_attacks_find_a_pool_that_counts_references(name: str) -> None:
    """A mutation: were the owner replaced by this, the tests above would fail; now and then one is lucky."""
    assert not all(survives(ArrayPool("1MiB", store=RefcountStore()), ATTACKS[name]) for _ in range(20))


TENSOR_ALIASES: dict[str, Callable[[Any], Any]] = {
    "a_view": lambda tensor: tensor[1:].t() if tensor.ndim == 2 else tensor[1:, ::2],
    "detached": lambda tensor: tensor.detach(),
    "numpy": lambda tensor: tensor.numpy()[1:],
    "numpy_by_dlpack": lambda tensor: np.from_dlpack(tensor),
    "a_storage": lambda tensor: tensor.untyped_storage(),
    "a_capsule": lambda tensor: tensor.__dlpack__(),
    "jax": lambda tensor: pytest.importorskip("jax", reason="needs jax").dlpack.from_dlpack(tensor),
}


@pytest.mark.parametrize("name", TENSOR_ALIASES)
def test_no_alias_of_a_pooled_tensor_sees_a_change(name: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    pool = PoolSet("1MiB").pool("torch", "cpu")
    with pool.acquire(SHAPE, torch.float32) as tensor:
        tensor.fill_(7)
        alias = TENSOR_ALIASES[name](tensor)
    del tensor
    for value in range(30):
        with pool.acquire(SHAPE, torch.float32) as other:
            other.fill_(value)
        del other
    if name == "a_storage":
        alias = torch.empty(0).set_(alias)
    elif name == "a_capsule":
        alias = torch.utils.dlpack.from_dlpack(alias)
    assert (np.asarray(alias) == 7).all()
    del alias
    gc.collect()
    assert pool.stats().bytes_in_use == 0


class _Producer:
    """Hands out a capsule that was made before."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 4, 0  # OpenCL, the first device

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule


class TestPyclesperanto:
    """The same on a device, where aliases are OpenCL buffers that C++ objects share."""

    @pytest.fixture
    def pool(self) -> ArrayPool:
        pytest.importorskip("pyclesperanto", reason="needs pyclesperanto")
        return PoolSet("1MiB", {0: "1MiB"}).pool("pyclesperanto", 0)

    @pytest.mark.parametrize(
        "make_alias",
        [
            lambda array: array.ravel(),
            lambda array: array.reshape(array.size),
            lambda array: array.ravel().__dlpack__(),
            lambda array: [array],
        ],
    )
    def test_no_live_alias_sees_a_change(self, pool: ArrayPool, make_alias: Callable[[Any], Any]) -> None:
        import pyclesperanto

        with pool.acquire(SHAPE, "float32") as array:
            array.fill(7)
            alias = make_alias(array)
        del array
        for value in range(20):
            with pool.acquire(SHAPE, "float32") as other:
                other.fill(value)
            del other
        assert pool.stats().bytes_in_use == 2048
        if isinstance(alias, list):
            (alias,) = alias
        elif not hasattr(alias, "get"):
            alias = pyclesperanto.Array.from_dlpack(_Producer(alias))
        assert (alias.get() == 7).all()
        del alias
        gc.collect()
        assert pool.stats().bytes_in_use == 0

    def test_a_kernel_that_reads_a_returned_buffer_is_done_first(self, pool: ArrayPool) -> None:
        import pyclesperanto

        for value in range(10):
            with pool.acquire((64, 64, 64), "float32") as array:
                array.fill(value)
                result = pyclesperanto.add_image_and_scalar(array, scalar=1)
            del array
            with pool.acquire((64, 64, 64), "float32") as other:
                other.fill(-1)
            del other
            assert (result.get() == value + 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("memory_type", ["cupy", "torch"])
@pytest.mark.parametrize(
    "make_alias",
    [
        lambda array: array[1:],
        lambda array: array.reshape(-1)[5:],
        lambda array: array.T if array.ndim == 2 else array[:, ::2],
        lambda array: pytest.importorskip("torch", reason="needs torch").from_dlpack(array)[2:],
    ],
)
def test_no_live_alias_on_a_gpu_sees_a_change(memory_type: str, make_alias: Callable[[Any], Any]) -> None:
    on_cuda(memory_type)
    pool = PoolSet("1MiB", {0: "64MiB"}).pool(memory_type, 0)
    with pool.acquire(SHAPE, "float32") as array:
        array[...] = 7
        alias = make_alias(array)
    del array
    for value in range(50):
        with pool.acquire(SHAPE, "float32") as other:
            other[...] = value
        del other
    assert bool((alias == 7).all())
    del alias
    gc.collect()
    assert pool.stats().bytes_in_use == 0
