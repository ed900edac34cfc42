"""A Dask cluster of separate programs on loopback: `dask scheduler` and `dask worker`, as started by hand."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil
from distributed import Client

DEADLINE_S = 120.0
POLL_S = 0.02
T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T], *, deadline_s: float = DEADLINE_S) -> T:
    """What `look` returns once it is true; an AssertionError that names it after `deadline_s` seconds."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"no {what} within {deadline_s:g} s"
        time.sleep(POLL_S)


class DaskPrograms:
    """Programs of one cluster, each in a process group of its own and with a log file; ended with the block.

    `environment` is added to what each is started with.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] = {}) -> None:
        self.folder = folder
        self.address = ""
        self._environment = dict(environment)
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in reversed(self._started):
            kill_with_children(program)

    def scheduler(self, *options: str, environment: Mapping[str, str] = {}) -> "subprocess.Popen[bytes]":
        """Start `dask scheduler` on a port of its own choice, and wait until it listens."""
        file = self.folder / f"scheduler-{len(self._started)}.json"
        program = self._start(
            "scheduler",
            *("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)),
            *options,
            environment=environment,
        )

        def listens() -> str:
            assert program.poll() is None, self.log_of(program)
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                return str(json.loads(file.read_text())["address"])
            return ""

        self.address = wait_for("scheduler", listens)
        return program

    def worker(
        self, *options: str, name: str, threads: int = 1, environment: Mapping[str, str] = {}
    ) -> "subprocess.Popen[bytes]":
        """Start `dask worker` under a name; it joins when it is ready."""
        return self._start(
            "worker",
            self.address,
            *("--name", name, "--nthreads", str(threads), "--host", "127.0.0.1", "--no-dashboard"),
            *("--local-directory", str(self.folder / "scratch")),
            *options,
            environment=environment,
        )

    def log_of(self, program: "subprocess.Popen[bytes]") -> str:
        """What a program has printed so far."""
        return self._log(self._started.index(program)).read_text(errors="replace")

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the cluster."""
        with Client(self.address, set_as_default=False, timeout=DEADLINE_S) as client:
            yield client

    def _start(self, *arguments: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with self._log(len(self._started)).open("w") as log:
            program = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment, **environment},
                cwd=self.folder,
                start_new_session=True,
            )
        self._started.append(program)
        return program

    def _log(self, number: int) -> Path:
        return self.folder / f"program-{number}.log"


def names_of(client: Client) -> set[str]:
    """The workers that the scheduler has, by name."""
    return {str(worker["name"]) for worker in client.scheduler_info(n_workers=-1)["workers"].values()}


def kill_with_children(program: "subprocess.Popen[Any]") -> None:
    """End a program and all that it has started, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(program.pid)]
        family += family[0].children(recursive=True)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
    program.wait()
