"""Ask each array library in a process of its own.

A library whose driver is broken may end the process that imports it, or write to its standard error: the
screen that is there to say what is wrong must survive that.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from memcore import BackendStatus, DeviceInfo, backend_status
from memcore.registry import memory_type_names

TIMEOUT_S = 120.0


def probe_backends(*memory_types: str, timeout_s: float = TIMEOUT_S) -> dict[str, BackendStatus]:
    """The status of these memory types, or of every built-in one; each within `timeout_s`."""
    names = memory_types or memory_type_names()
    with ThreadPoolExecutor(len(names)) as executor:
        return dict(zip(names, executor.map(lambda name: _ask(name, timeout_s), names), strict=True))


def _ask(name: str, timeout_s: float) -> BackendStatus:
    command = [sys.executable, "-m", __name__, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return _unusable(name, f"importing {name} took longer than {timeout_s:g} s")
    answer = done.stdout.rpartition("\n")[2]
    if done.returncode or not answer.startswith("{"):
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        lines = done.stderr.strip().splitlines()
        return _unusable(
            name, f"importing {name} ends the process ({how}){f': {lines[-1]}' if lines else ''}"
        )
    record = json.loads(answer)
    record["devices"] = tuple(DeviceInfo(**device) for device in record["devices"])
    return BackendStatus(**record)


def _unusable(name: str, reason: str) -> BackendStatus:
    return BackendStatus(name, available=False, version=None, devices=(), reason=reason)


if __name__ == "__main__":
    (status,) = backend_status(sys.argv[1]).values()
    # A library may print while it is imported: the answer is the last line, and nothing follows it.
    print("\n" + json.dumps(asdict(status)), end="", flush=True)
