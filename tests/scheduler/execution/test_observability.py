"""What a run tells programs: events on Dask's topic, figures on the page of Dask's scheduler."""

import asyncio
import json
import re
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from distributed.comm import CommClosedError
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from scheduler import StackJob
from scheduler.execution.announcer import metrics_url
from scheduler.execution.cluster import local_cluster
from scheduler.execution.errors import ClusterError
from scheduler.execution.events import TOPIC, Events, taken
from scheduler.execution.metrics import RunFigures, RunsCollector
from scheduler.execution.status import DeviceStatus
from scheduler.execution.worker_plugin import StackyardScheduler
from tests.scheduler.dask_programs import DaskPrograms, kill_with_children, names_of, wait_for
from tests.scheduler.execution.gated_runs import release, wait_until_begun, write_gated
from tests.scheduler.execution.small_clusters import (
    DEADLINE_S,
    Gate,
    own_estimates,
    scheduler_on,
    stack,
    step,
    until,
)

PAGE = (Path(__file__).parents[3] / "docs/observability.md").read_text(encoding="utf-8")
APART = ("state", "outcome", "verdict", "kind", "device", "run")
Samples = dict[tuple[str, str], float]


@pytest.fixture(autouse=True)
def _quiet_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_estimates(tmp_path_factory.mktemp("cache")):
        yield


def samples(url: str) -> Samples:
    """Ours of what the page has, by metric, and by what tells its samples apart."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        page = answer.read().decode()
    assert "dask_scheduler_clients" in page
    return {
        (sample.name, next(sample.labels[key] for key in APART if key in sample.labels)): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("stackyard_")
    }


def test_an_embedded_run_is_seen_by_prometheus_while_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.execution.devices.usable_cores", lambda: 2)
    gate = Gate(tmp_path)
    with scheduler_on("embedded", tmp_path) as scheduler:
        url = scheduler.record.metrics_url
        assert url.startswith("http://127.0.0.1:")
        names = ("a", "b", "c")
        broken = scheduler.submit(StackJob(stack(), [step("broken")]))
        assert broken.result(DEADLINE_S).outcome == "failed"
        futures = scheduler.map([StackJob(stack(), [gate.step], name=name) for name in names])
        until(lambda: samples(url).get(("stackyard_jobs", "failed")) == 1)
        until(lambda: samples(url)["stackyard_jobs", "running"] == 2)
        seen = samples(url)
        assert seen["stackyard_jobs", "waiting"] == 1
        assert seen["stackyard_attempts_total", "failed"] == 1
        assert seen["stackyard_decisions_total", "admit"] >= 3
        assert seen["stackyard_longest_wait_seconds", scheduler.run_dir.name] > 0
        total = seen["stackyard_device_bytes", "total"]
        assert seen["stackyard_device_bytes", "used"] + seen["stackyard_device_bytes", "free"] == total
        assert 0 < seen["stackyard_device_bytes", "reserved"] < total
        assert {"idle", "external"} <= {kind for name, kind in seen if name == "stackyard_device_bytes"}
        status = scheduler.status()
        assert status is not None
        assert status.metrics_url == url
        gate.let_go(*names)
        for future in futures:
            future.result(DEADLINE_S)
        scheduler.close()
        assert samples(url) == {}
    with closing(sqlite3.connect(scheduler.run_dir / "journal.sqlite")) as journal:
        # Its processes have joined one by one.
        assert journal.execute("SELECT slots FROM device").fetchall() == [(2,)]


def stackyard(*arguments: object, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "scheduler.screens", *map(str, arguments)]
    with (folder / "events").open("w") as events:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=events, text=True)


def test_runs_on_a_cluster_of_programs_are_seen_there_and_gone_afterwards(tmp_path: Path) -> None:
    """The scheduler is a program of its own. A driver is killed; another one goes on, and ends in order."""
    (tmp_path / "programs").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/metrics"
    with DaskPrograms(tmp_path / "programs") as dask:
        dask.scheduler("--dashboard-address", f"127.0.0.1:{port}")
        dask.worker(name="one")
        with dask.client() as client:
            wait_for("worker", lambda: names_of(client) == {"one"})
            config = write_gated(tmp_path, dask.address, jobs=2, hold=("n-0",))
            killed = stackyard("run", config, "--log-json", folder=tmp_path)
            wait_until_begun(tmp_path, "n-0")
            wait_for("running job", lambda: samples(url).get(("stackyard_jobs", "running")))
            kill_with_children(killed)
            wait_for("end of the killed run", lambda: samples(url) == {})
            release(tmp_path, "n-0")
            with subprocess.Popen(
                [sys.executable, "-c", _example().replace("tcp://10.0.0.1:8786", dask.address)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as follower:
                assert follower.stdin is not None
                assert follower.stdout is not None
                assert follower.stdout.readline() == "Enter ends this\n"
                goes_on = stackyard("resume", tmp_path / "out", "--log-json", folder=tmp_path)
                assert goes_on.wait(DEADLINE_S) == 0
                shown = []
                while " run_ended" not in "".join(shown):
                    shown.append(follower.stdout.readline())
                follower.communicate("\n", timeout=DEADLINE_S)
            wait_for("end", lambda: samples(url) == {})
            on_topic = [event for _, event in client.get_events(TOPIC)]
    on_standard_error = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    last = on_topic[-len(on_standard_error) :]
    assert last == on_standard_error
    assert any(line.endswith(" job_ended n-0 done on cpu@" + socket.gethostname() + "\n") for line in shown)
    assert [event["event"] for event in on_topic].count("run_started") == 2
    for event in on_topic:
        assert set(event) - {"at", "run", "event"} >= _described()[event["event"]], event
    assert {"device", "decision", "attempt_started", "attempt_ended"} <= {each["event"] for each in last}


def _example() -> str:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return str(example)


def _described() -> dict[str, set[str]]:
    """The keys that the page gives for each event."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|(.*)\|$", PAGE, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", keys)) - {"detail"} for name, keys in rows}


def test_every_metric_is_described_with_its_labels() -> None:
    collector, registry = RunsCollector(), CollectorRegistry()
    device = DeviceStatus("gpu0", "GPU-1", "cuda", False, 10, 4, 3, 2, 1, running=("a",))
    figures = RunFigures("r", {"done": 1}, {"done": 1}, {"wait": 1}, (device,), 2.5)
    collector.show("client", "session", figures, registry)
    found = {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}
    assert {name: keys for name, keys in _described().items() if name.startswith("stackyard_")} == found


def test_a_device_whose_probe_has_no_answer_has_no_free_memory() -> None:
    collector, registry = RunsCollector(), CollectorRegistry()
    device = DeviceStatus("gpu0", "GPU-1", "cuda", False, 10, None, 3, 2, 1)
    collector.show("client", "session", RunFigures("r", devices=(device,)), registry)
    labels = {"run": "r", "device": "gpu0", "uuid": "GPU-1", "virtual": "false"}
    assert registry.get_sample_value("stackyard_device_bytes", labels | {"kind": "total"}) == 10
    assert registry.get_sample_value("stackyard_device_bytes", labels | {"kind": "free"}) is None
    assert registry.get_sample_value("stackyard_device_bytes", labels | {"kind": "used"}) is None


def test_each_session_of_a_client_is_forgotten_alone_or_with_the_client() -> None:
    collector, registry = RunsCollector(), CollectorRegistry()
    for client, session in (("a", "1"), ("a", "2"), ("b", "3")):
        collector.show(client, session, RunFigures(f"run-{session}"), registry)

    def runs() -> set[str]:
        found = {sample.labels["run"] for family in registry.collect() for sample in family.samples}
        return {name.removeprefix("run-") for name in found}

    assert runs() == {"1", "2", "3"}
    collector.forget("a", "1", registry)
    assert runs() == {"2", "3"}
    collector.forget("a", None, registry)
    assert runs() == {"3"}
    collector.forget("b", None, registry)
    assert runs() == set()
    collector.show("b", "4", RunFigures("run-4"), registry)
    assert runs() == {"4"}


@pytest.mark.parametrize(
    ("link", "url"),
    [
        ("http://127.0.0.1:8787/status", "http://127.0.0.1:8787/metrics"),
        ("/user/me/proxy/8787/status", "/user/me/proxy/8787/metrics"),
        ("", ""),
        (None, ""),
    ],
)
def test_metrics_are_beside_the_dashboard(link: str | None, url: str) -> None:
    assert metrics_url(SimpleNamespace(dashboard_link=link)) == url


def test_a_dashboard_link_that_cannot_be_made_is_no_error() -> None:
    class Client:
        @property
        def dashboard_link(self) -> str:
            raise KeyError("JUPYTERHUB_SERVICE_PREFIX")

    assert metrics_url(Client()) == ""


def test_events_go_to_who_follows_until_they_leave() -> None:
    events = Events("run-1")
    events.tell("remark", text="nobody hears")
    first, second = events.follow(), events.follow()
    events.tell("remark", text="a")
    assert [event["text"] for event in taken(first)] == ["a"]
    events.leave(first)
    events.tell("remark", text="b")
    assert taken(first) == []
    assert [(event["run"], event["text"]) for event in taken(second, 1)] == [("run-1", "a")]
    assert [event["text"] for event in taken(second)] == ["b"]


def test_a_metrics_port_that_is_taken_is_refused_before_anything_starts() -> None:
    with socket.socket() as taken_by_us:
        taken_by_us.bind(("127.0.0.1", 0))
        taken_by_us.listen()
        port = taken_by_us.getsockname()[1]
        refused = pytest.raises(ClusterError, match=rf"cluster.metrics_port: {port} can't be listened at")
        with refused, local_cluster((), host_limit=1 << 30, metrics_port=port):
            pass


def test_a_worker_that_goes_while_its_run_is_tidied_away_is_no_error() -> None:
    """As on a cluster that ends with its client; asyncio would print a traceback at the end of the run."""

    class Closing:
        worker_plugins: ClassVar = {"plugin": object()}
        nanny_plugins: ClassVar = {"plugin": object()}
        told: ClassVar[list[str]] = []

        async def unregister_worker_plugin(self, _comm: None, name: str) -> None:
            self.told.append(name)
            raise CommClosedError("Stream is closed")

        unregister_nanny_plugin = unregister_worker_plugin

    asyncio.run(StackyardScheduler("topic", "client", "plugin")._tidy(Closing()))
    assert Closing.told == ["plugin", "plugin"]
