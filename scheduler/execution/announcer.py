"""Announces a run's events and figures on its Dask cluster, from a thread of its own."""

import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import CancelledError

from distributed import Client

from scheduler.execution.events import Event, taken
from scheduler.execution.metrics import RunFigures, announce, withdraw
from scheduler.execution.record import JournalRecord
from scheduler.execution.status import RunStatus

PERIOD_S = 0.5
# Dask's log of a topic keeps a thousand; more in one message would hold the scheduler up.
AT_ONCE = 1000


class Announcer:
    """Sends what happens in a run to the scheduler of `client`, twice a second, until it is closed.

    It follows the record's events from when it is made. A scheduler that can't be reached any more ends it:
    the run has other ways to hear of that.
    """

    def __init__(self, client: Client, record: JournalRecord) -> None:
        self._client = client
        self._record = record
        self._session = secrets.token_hex(4)
        self._queue = record.events.follow()
        self._attempts: Counter[str] = Counter()
        self._decisions: Counter[str] = Counter()
        self._told: RunFigures | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._announce, name="stackyard-announcer", daemon=True)

    def start(self) -> None:
        """Begin to announce."""
        self._record.metrics_url = metrics_url(self._client)
        self._thread.start()

    def close(self) -> None:
        """Announce what is left, and take the run's figures away."""
        self._closing.set()
        self._thread.join()

    def _announce(self) -> None:
        try:
            while not self._closing.wait(PERIOD_S):
                self._send()
            self._send()
            self._client.run_on_scheduler(withdraw, self._client.id, self._session)
        except (OSError, CancelledError):  # the connection is lost, or is being closed
            pass
        except Exception as error:  # noqa: BLE001  whatever the scheduler's process answers: the run goes on
            self._record.remark(
                "the run's events and figures aren't told on the cluster: its scheduler can't take them, "
                f"{type(error).__name__}: {error}"
            )
        finally:
            self._record.events.leave(self._queue)

    def _send(self) -> None:
        while True:
            # The moment before the events: its jobs' ends are among them.
            status = self._record.status
            events = taken(self._queue, AT_ONCE)
            self._count(events)
            figures = self._figures(status)
            if not events and figures == self._told:
                return
            self._client.run_on_scheduler(announce, self._client.id, self._session, events, figures)
            self._told = figures

    def _count(self, events: list[Event]) -> None:
        self._attempts.update(event["outcome"] for event in events if event["event"] == "attempt_ended")
        self._decisions.update(event["verdict"] for event in events if event["event"] == "decision")

    def _figures(self, status: RunStatus | None) -> RunFigures:
        run = self._record.run_dir.name
        attempts, decisions = dict(self._attempts), dict(self._decisions)
        if status is None:
            return RunFigures(run, {}, attempts, decisions)
        longest_wait_s = max((job.waited_s for job in status.waiting), default=0.0)
        return RunFigures(run, _jobs(status), attempts, decisions, status.devices, longest_wait_s)


def metrics_url(client: Client) -> str:
    """Where the scheduler of `client` serves metrics; "" if it serves no pages."""
    try:
        link = client.dashboard_link
    except KeyError:  # a template of Dask's configuration names a variable that isn't set here
        return ""
    return f"{link.rpartition('/')[0]}/metrics" if link else ""


def _jobs(status: RunStatus) -> Mapping[str, int]:
    waiting = max(0, status.jobs - status.done - status.failed - status.running)
    return {"waiting": waiting, "running": status.running, "done": status.done, "failed": status.failed}
