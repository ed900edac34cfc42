"""Pressure: when to give back, how much, and that it happens on its own."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pools import PoolSet, PressureWatcher, VirtualDeviceMemory
from pools.cgroup import Cgroup
from pools.pressure import Gauge

MIB = 1 << 20


def test_the_gauge_has_hysteresis() -> None:
    gauge = Gauge(400)
    readings = [401, 400, 399, 450, 499, 500, 450, 399, None, 0]
    assert [gauge.wanted(free) for free in readings] == [0, 0, 101, 50, 1, 0, 0, 101, 0, 500]


def test_an_unknown_reading_is_neither_pressure_nor_relief() -> None:
    gauge = Gauge(100)
    assert gauge.wanted(None) == 0
    gauge.wanted(99)
    gauge.wanted(None)
    assert gauge.under_pressure


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition, at most 20 s."""
    tick = threading.Event()

    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            tick.wait(0.01)
        raise AssertionError("the condition didn't come true in 20 s")

    return wait


def test_who_can_give_back_more_than_the_pools_is_asked() -> None:
    asked: list[tuple[object, int]] = []

    def reclaim(device: object, nbytes: int) -> int:
        asked.append((device, nbytes))
        return 7

    with (
        PoolSet("64MiB") as pools,
        PressureWatcher(pools, {"cpu": 100}, {"cpu": lambda: 25}, reclaim=reclaim, interval_s=60) as watcher,
    ):
        assert watcher.look() == 7
    assert asked == [("cpu", 100)]


def test_idle_host_memory_goes_back_under_pressure(wait_until: Callable[[Callable[[], bool]], None]) -> None:
    free = [10 * MIB]
    with PoolSet("64MiB") as pools, PressureWatcher(pools, "4MiB", {"cpu": lambda: free[0]}, interval_s=0.01):
        pool = pools.pool("numpy", "cpu")
        held = pool.lease(MIB, "uint8")
        held.array[:] = 7
        with pool.acquire(8 * MIB, "uint8"):
            pass
        assert pool.stats().bytes_idle == 8 * MIB
        free[0] = 3 * MIB
        wait_until(lambda: pool.stats().bytes_idle == 0)
        assert (held.array == 7).all()


def test_another_process_on_a_virtual_device_gets_the_idle_memory(
    tmp_path: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    device = VirtualDeviceMemory(tmp_path / "device", 10 * MIB)
    pools = PoolSet("64MiB", virtual_devices={0: device})
    pytest.importorskip("torch", reason="needs torch")
    with pools, PressureWatcher(pools, "2MiB", {"cpu": lambda: None}, interval_s=0.01):
        with pools.pool("torch", 0).acquire(6 * MIB, "uint8"):
            pass
        assert device.used() == 6 * MIB
        with device.charge(3 * MIB, owner="a stranger"):
            wait_until(lambda: device.used() == 3 * MIB)
    device.unlink()


def test_a_failing_probe_does_not_end_the_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter([OSError("the driver is gone"), MIB])
    told = threading.Event()

    def read() -> int | None:
        answer = next(answers, None)
        if isinstance(answer, OSError):
            raise answer
        told.set()
        return answer

    with PoolSet("64MiB") as pools, PressureWatcher(pools, "4MiB", {"cpu": read}, interval_s=0.01):
        assert told.wait(20)
    assert "the driver is gone" in caplog.text


def test_look_says_what_came_back() -> None:
    with (
        PoolSet("64MiB") as pools,
        PressureWatcher(pools, "4MiB", {"cpu": lambda: MIB}, interval_s=3600) as watcher,
    ):
        assert watcher.look() == 0
        for size in (MIB, 2 * MIB, 3 * MIB):
            with pools.pool("numpy", "cpu").acquire(size, "uint8"):
                pass
        # 4 MiB are wanted: the two oldest aren't enough
        assert watcher.look() == 6 * MIB


def test_each_device_has_its_own_headroom() -> None:
    looked: list[object] = []

    def free(device: object) -> Callable[[], int]:
        return lambda: looked.append(device) or 50  # type: ignore[func-returns-value]

    readers = {"cpu": free("cpu"), 0: free(0), 1: free(1)}
    with PoolSet("1MiB", {0: 1, 1: 1}) as pools:
        with PressureWatcher(pools, {0: 100, "cpu": 10}, readers, interval_s=3600) as watcher:
            watcher.look()
            assert looked == [0, "cpu"]
        with pytest.raises(ValueError, match="7"):
            PressureWatcher(pools, {7: 100}, readers)


@pytest.mark.parametrize(
    ("lines", "files", "limit", "used"),
    [
        (
            "0::/job/step\n",
            {"job/memory.max": "1000", "job/memory.current": "700",
             "job/memory.stat": "anon 5\ninactive_file 200",
             "job/step/memory.max": "max", "job/step/memory.current": "600"},
            1000, 500,
        ),
        (
            "5:cpu,memory:/job\n0::/\n",
            {"memory/job/memory.limit_in_bytes": "900", "memory/job/memory.usage_in_bytes": "300",
             "memory/job/memory.stat": "total_inactive_file 100",
             "memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "400"},
            900, 200,
        ),
    ],
)  # fmt: skip
def test_the_tightest_cgroup_bounds_the_host(
    tmp_path: Path, lines: str, files: dict[str, str], limit: int, used: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "self").write_text(lines)
    cgroup = Cgroup.of_this_process(tmp_path, tmp_path / "self")
    assert cgroup is not None
    assert (cgroup.limit, cgroup.used()) == (limit, used)


def test_without_a_limit_there_is_no_cgroup(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/\n")
    assert Cgroup.of_this_process(tmp_path, tmp_path / "self") is None
    assert Cgroup.of_this_process(tmp_path, tmp_path / "missing") is None
