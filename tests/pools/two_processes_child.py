"""One of two processes that share a virtual device: alternates torch, JAX and pyclesperanto jobs on it.

Arguments: the device's path, bytes of a job, number of jobs, the limit of this process's pools. Prints one
line at the first refusal of the device, and figures as JSON at the end.
"""

import gc
import json
import sys
import time

import pyclesperanto  # noqa: F401  before the others: PoCL's LLVM must be loaded first

import jax  # isort: skip
import numpy as np
import psutil

from memcore import OutOfDeviceMemoryError
from pools import ArrayPool, Lease, PoolSet, VirtualDeviceMemory, held_by

TYPES = ("torch", "jax", "pyclesperanto")
add_in_place = jax.jit(lambda array, value: array + value, donate_argnums=0)


def use(memory_type: str, pool: ArrayPool, nbytes: int, value: int) -> None:
    """Fill an array of that many bytes and check a few values."""
    lease: Lease = pool.lease((nbytes // 4096, 32, 32), "float32")
    if memory_type == "jax":
        lease.replace(add_in_place(lease.array, np.float32(value)))
        found = np.asarray(lease.array)[::7, 3, 5]
    elif memory_type == "torch":
        lease.array.fill_(value)
        found = lease.array[::7, 3, 5].numpy()
    else:
        lease.array.fill(value)
        found = lease.array.get()[::7, 3, 5]
    assert (found == value).all(), (memory_type, value)
    del found
    lease.release(timeout_s=20)


def main(path: str, nbytes: int, jobs: int, limit: int) -> None:
    gc.freeze()  # what was imported is no garbage
    device = VirtualDeviceMemory(path)
    refused = recovered = most = 0
    resident: list[int] = []
    with PoolSet("1GiB", {0: limit}, virtual_devices={0: device}) as pools:
        for number in range(jobs):
            memory_type = TYPES[number % len(TYPES)]
            pool = pools.pool(memory_type, 0)
            deadline = time.monotonic() + 60
            done, was_refused = False, False
            while not done:
                try:
                    with held_by(f"job {number}"):
                        use(memory_type, pool, nbytes, number % 100)
                    done = True
                except OutOfDeviceMemoryError:
                    was_refused = True
                if was_refused and not done:
                    # the error is gone: give back what is idle here, for the other process too
                    pools.reclaim(0, nbytes)
                    refused += 1
                    if refused == 1:
                        print("refused", flush=True)
                    assert time.monotonic() < deadline
                    while device.free() < nbytes and time.monotonic() < deadline:
                        time.sleep(0.002)
            recovered += was_refused
            most = max(most, pools.stats().bytes_held)
            if number % 15 == 14:
                gc.collect()
                resident.append(psutil.Process().memory_info().rss)
        leaks = [str(lease) for lease in pools.leases()]
        in_use = pools.stats().bytes_in_use
        pools.reclaim(0, limit)
        left = pools.stats().bytes_held
    print(json.dumps({
        "refused": refused, "recovered": recovered, "most": most, "resident": resident, "leaks": leaks,
        "in_use": in_use, "left": left,
    }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
