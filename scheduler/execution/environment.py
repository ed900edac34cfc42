"""The environment of a worker process, complete before any framework is imported in it."""

import os

from scheduler.core.model import Device, DeviceKind

# NumPy's BLAS and OpenMP runtimes read these once, when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)

DEVICE_VARIABLE = "STACKYARD_DEVICE"
# Seconds since the epoch at which a worker stops taking attempts: its time on a cluster ends soon after.
LEAVE_VARIABLE = "STACKYARD_LEAVE_AT"


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that bound the threads of one worker process; set before the process starts."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def worker_environment(device: Device, *, threads: int, virtual_devices: int = 0) -> dict[str, str]:
    """Variables for a worker process bound to `device`.

    A CUDA worker sees its own device only, by UUID, as number 0; every other worker sees none. JAX
    and TensorFlow keep what they once took, so preallocation is off and the fraction bounded.

    Parameters
    ----------
    threads
        Threads that BLAS, OpenMP, TensorFlow and XLA may use in this process.
    virtual_devices
        How many virtual GPUs the run has: as many logical CPU devices are made in JAX, and OpenCL devices in
        PoCL, so that arrays for virtual GPU i have a device i to live on.
    """
    on_gpu = device.kind is DeviceKind.CUDA
    xla_flags = [os.environ.get("XLA_FLAGS", "")]
    if virtual_devices:
        xla_flags.append(f"--xla_force_host_platform_device_count={virtual_devices}")
    if threads == 1:
        xla_flags.append("--xla_cpu_multi_thread_eigen=false")
    opencl = {}
    if virtual_devices and "POCL_DEVICES" not in os.environ:
        # PoCL, OpenCL on the CPU, makes a device for each word; other OpenCL drivers don't read this.
        opencl["POCL_DEVICES"] = " ".join(["pthread"] * virtual_devices)
    return {
        **opencl,
        DEVICE_VARIABLE: device.uuid,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": device.uuid if on_gpu else "",
        "JAX_PLATFORMS": "cuda,cpu" if on_gpu else "cpu",
        "XLA_FLAGS": " ".join(filter(None, xla_flags)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_CLIENT_MEM_FRACTION": _xla_memory_fraction(),
        # The older name of the same: JAX refuses to start with both.
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **thread_environment(threads),
    }


def _xla_memory_fraction() -> str:
    """What the user has bounded JAX to, or a share that leaves others some room."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    return next(filter(None, map(os.environ.get, names)), "0.75")
