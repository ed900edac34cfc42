"""A run on a cluster whose first worker is yet to come: it shows its moments, and can be stopped."""

import threading
from pathlib import Path

from distributed import LocalCluster

from scheduler.config import load_config
from scheduler.execution.journal import Journal
from scheduler.execution.run import run
from scheduler.execution.status import RunStatus
from scheduler.images.sample import write_sample

CONFIG = """\
input: {{path: img, pattern: "{{well}}_s{{site}}_z{{z}}_c{{channel}}.tif"}}
steps: [{{use: gaussian, with: {{sigma: 1}}, memory: [numpy]}}]
output: {{path: out, name: "{{well}}_c{{channel}}"}}
cluster: {{kind: address, address: "{address}"}}
"""


def test_a_run_stopped_before_a_worker_came_is_interrupted_with_all_its_jobs(tmp_path: Path) -> None:
    write_sample(tmp_path / "img", wells=1, sites=1, channels=2, planes=2, size=16)
    stop, seen = threading.Event(), []

    def stop_at_once(status: RunStatus) -> None:
        seen.append(status)
        stop.set()

    (tmp_path / "out/.stackyard/fixed/logs").mkdir(parents=True)
    with LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0") as cluster:
        (tmp_path / "run.yaml").write_text(CONFIG.format(address=cluster.scheduler_address))
        config = load_config(tmp_path / "run.yaml")
        summary = run(config, on_status=stop_at_once, stop=stop, run_id="fixed")
    assert (seen[0].state, seen[0].jobs, seen[0].devices) == ("running", 2, ())
    assert (seen[-1].state, summary.exit_status) == ("interrupted", 130)
    assert (summary.jobs, summary.done, summary.lost) == (2, 0, 0)
    assert summary.run_dir == str(tmp_path / "out/.stackyard/fixed")
    journal = Journal.open_readonly(tmp_path / "out/.stackyard/fixed/journal.sqlite")
    assert [job.state for job in journal.jobs()] == ["waiting", "waiting"]
    journal.close()
