"""PCI addresses of CUDA devices from the driver, for libraries that don't tell them."""

from __future__ import annotations

import ctypes

ADDRESS_BYTES = 32


def pci_address(ordinal: int) -> str | None:
    """The address of a CUDA ordinal of this process, as "0000:01:00"; None without a driver or such a device.

    Creates no context. Every library of a process counts CUDA devices as the driver does.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device = ctypes.c_int()
    text = ctypes.create_string_buffer(ADDRESS_BYTES)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), ordinal)
        or driver.cuDeviceGetPCIBusId(text, ADDRESS_BYTES, device)
    )
    return None if failed else text.value.decode().lower().partition(".")[0]
