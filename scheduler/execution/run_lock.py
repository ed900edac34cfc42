"""One driver at a time for a config: a second one would do every job twice."""

import contextlib
import fcntl
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterator

from scheduler.config.model import RunConfig
from scheduler.images.errors import OutputError


@contextlib.contextmanager
def run_lock(config: RunConfig, run_id: str) -> Iterator[None]:
    """Hold the lock of this config in its output folder; it ends with the block, or with the process.

    Raises
    ------
    OutputError
        A run of the same config goes on; it is named.
    """
    digest = hashlib.sha256(config.model_dump_json(exclude={"config_file"}).encode()).hexdigest()[:16]
    path = config.output.path / ".stackyard" / f"{digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    # flock, not lockf: it belongs to the open file, so two runs in threads of one process exclude each other.
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OutputError(
                f"this config is being run already, by {file.read().strip() or 'another process'}; "
                "wait for it, or stop it with stackyard cancel"
            ) from None
        file.truncate(0)
        file.write(f"run {run_id}, process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def new_run_id() -> str:
    """A name for a run that no other has: its time, and a few random characters."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
