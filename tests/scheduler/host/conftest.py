import ctypes

import pynvml
import pytest

from tests.scheduler.host import fake_nvml


@pytest.fixture(scope="session")
def nvml_libraries(tmp_path_factory):
    """Paths of the fake NVML with and without the v2 memory call."""
    try:
        return {
            v2: fake_nvml.build(tmp_path_factory.mktemp(f"nvml-{'v2' if v2 else 'v1'}"), v2=v2)
            for v2 in (True, False)
        }
    except FileNotFoundError as error:
        pytest.skip(f"needs a C compiler: {error}")


@pytest.fixture
def nvml(nvml_libraries, tmp_path, monkeypatch, request):
    """The state of a fake NVML that pynvml uses in this process; parametrize indirectly with v2=False."""
    path = tmp_path / "nvml-state"
    state = fake_nvml.new_state(path)
    monkeypatch.setenv("FAKE_NVML_STATE", str(path))
    library = nvml_libraries[getattr(request, "param", True)]
    # the library maps its state once: each test needs a copy of its own
    own = tmp_path / "libnvidia-ml.so.1"
    own.write_bytes(library.read_bytes())
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(own)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return state
