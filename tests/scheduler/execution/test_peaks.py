"""The most device memory that an attempt took, as the libraries of its process count it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from memcore import DeviceError
from memcore.memory_type import GpuId
from scheduler.core.model import Device, DeviceKind
from scheduler.execution.peaks import DevicePeak


class Library:
    """A backend whose counter says what the test has put there."""

    def __init__(self, name: str, *peaks: int | None, on_host: bool = False, absent: bool = False) -> None:
        self.memory_type = name
        self.peaks = list(peaks)
        self.places: list[GpuId] = []
        self.measuring = 0
        self.on_host = on_host
        self.absent = absent

    def validate_gpu_id(self, gpu_id: GpuId) -> GpuId:
        if self.absent:
            raise DeviceError(f"{self.memory_type} has no {gpu_id}")
        return gpu_id

    def in_host_memory(self, place: GpuId) -> bool:
        return self.on_host

    def measure_peak(self, place: GpuId) -> Callable[[], int | None]:
        self.places.append(place)
        self.measuring += 1

        def ended() -> int | None:
            self.measuring -= 1
            return self.peaks.pop(0)

        return ended


Load = Callable[..., list[Any]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    loaded: list[Any] = []
    monkeypatch.setattr("scheduler.execution.peaks.loaded_backends", lambda: iter(loaded))

    def add(*libraries: Library) -> list[Any]:
        loaded.extend(libraries)
        return loaded

    return add


def on(kind: DeviceKind = DeviceKind.CUDA, trimmed: Callable[[int], None] = lambda device: None) -> Any:
    return SimpleNamespace(
        device=Device("u", "gpu0", kind, 1 << 30),
        pools=SimpleNamespace(trim=trimmed),
        gpu_id=lambda memory_type: 0,
    )


def test_the_peaks_of_the_libraries_on_the_device_add_up(load: Load) -> None:
    torch, cupy = Library("torch", 300), Library("cupy", 20)
    load(torch, cupy, Library("numpy", on_host=True), Library("jax", absent=True))
    with DevicePeak(on()) as peak:
        assert (torch.measuring, cupy.measuring) == (1, 1)
        assert peak.nbytes is None
    assert peak.nbytes == 320
    assert (torch.places, torch.measuring, cupy.measuring) == ([0], 0, 0)


def test_of_several_stays_on_the_device_the_largest_counts(load: Load) -> None:
    load(Library("torch", 20, 300, 70))
    peak = DevicePeak(on())
    found = []
    for _ in range(3):
        with peak:
            pass
        found.append(peak.nbytes)
    assert found == [20, 300, 300]


def test_a_failed_stay_is_measured_too(load: Load) -> None:
    load(Library("torch", 300))
    peak = DevicePeak(on())
    with pytest.raises(MemoryError), peak:
        raise MemoryError
    assert peak.nbytes == 300


def test_what_one_library_cannot_tell_nobody_knows(load: Load) -> None:
    load(Library("torch", 300, 300), Library("jax", None, 5))
    peak = DevicePeak(on())
    for _ in range(2):
        with peak:
            pass
        assert peak.nbytes is None


def test_an_unknown_stay_spoils_the_ones_before(load: Load) -> None:
    load(Library("torch", 300, None))
    peak = DevicePeak(on())
    with peak:
        pass
    with peak:
        pass
    assert peak.nbytes is None


def test_nothing_is_known_of_a_library_that_was_loaded_meanwhile(load: Load) -> None:
    load(Library("torch", 300))
    with DevicePeak(on()) as peak:
        load(Library("cupy", 5))
    assert peak.nbytes is None


def test_a_job_on_a_gpu_that_took_nothing_took_it_elsewhere(load: Load) -> None:
    load(Library("torch", 0))
    with DevicePeak(on()) as peak:
        pass
    assert peak.nbytes is None


@pytest.mark.parametrize("kind", [DeviceKind.CPU, DeviceKind.VIRTUAL])
def test_where_no_device_memory_is_used_nothing_is_measured(load: Load, kind: DeviceKind) -> None:
    torch = Library("torch", 300)
    load(torch)
    with DevicePeak(on(kind)) as peak:
        pass
    assert peak.nbytes is None
    assert torch.places == []


def test_what_pools_keep_idle_is_given_to_the_libraries_before_they_count(load: Load) -> None:
    # A buffer that a pool lends again is in no library's counter: the second job would seem to need nothing.
    torch = Library("torch", 300)
    load(torch)
    idle: list[int] = []
    with DevicePeak(on(trimmed=lambda device: idle.append(device + torch.measuring))):
        assert idle == [0]


def test_nothing_is_trimmed_where_nothing_is_measured(load: Load) -> None:
    trimmed: list[int] = []
    with DevicePeak(on(DeviceKind.VIRTUAL, trimmed.append)):
        assert trimmed == []
