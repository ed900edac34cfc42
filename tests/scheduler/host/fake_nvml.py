"""Builds the fake libnvidia-ml.so.1 and gives its mapped state as Python objects."""

import ctypes
import mmap
import shutil
import subprocess
from pathlib import Path

GPUS, INSTANCES = 8, 7
GIB = 1 << 30


class Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("reserved", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Instance(ctypes.Structure):
    _fields_ = [
        ("uuid", ctypes.c_char * 96),
        ("exists", ctypes.c_uint),
        ("error", ctypes.c_uint),
        ("memory", Memory),
    ]


class Gpu(ctypes.Structure):
    _fields_ = [
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("error", ctypes.c_uint),
        ("handle_error", ctypes.c_uint),
        ("mig_mode", ctypes.c_uint),
        ("mig_error", ctypes.c_uint),
        ("memory", Memory),
        ("instances", Instance * INSTANCES),
    ]


class State(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_uint),
        ("init_error", ctypes.c_uint),
        ("delay_ms", ctypes.c_uint),
        ("initialised", ctypes.c_uint),
        ("gpus", Gpu * GPUS),
    ]


def build(folder: Path, *, v2: bool = True) -> Path:
    """Compile the library.

    Its folder is meant for LD_LIBRARY_PATH. Raises FileNotFoundError without a compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_suffix(".c")
    flags = [] if v2 else ["-DNO_V2"]
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        *flags,
        # No soname: the loader would take this library for NVIDIA's in all later tests of the process.
    ]
    subprocess.run([*command, "-o", str(library), str(source)], check=True)
    return library


def new_state(path: Path, count: int = 2, total: int = 8 * GIB) -> State:
    """A state file with `count` idle GPUs, 256 MiB of each kept by the driver."""
    path.write_bytes(bytes(ctypes.sizeof(State)))
    with path.open("r+b") as file:
        state = State.from_buffer(mmap.mmap(file.fileno(), 0))
    state.count = count
    for number in range(count):
        gpu = state.gpus[number]
        gpu.uuid = f"GPU-{number:08x}-aaaa-bbbb-cccc-000000000000".encode()
        gpu.name = b"Fake GPU"
        gpu.memory = Memory(total, 256 << 20, 0)
        gpu.mig_error = 3
    return state
