"""Runs in an allocation: brings workers up on all its nodes, and writes down what they say.

python inside_child.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

from scheduler.config.cluster import SlurmCluster
from scheduler.config.model import DevicesConfig
from scheduler.execution.slurm import slurm_cluster

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    remarks: list[str] = []
    config = SlurmCluster(inside=True, interface="lo", processes=1, drain_s=30, env={"MARK": "here"})
    with slurm_cluster(config, DevicesConfig(), run_dir=folder / "run", remark=remarks.append) as workers:
        workers.client.wait_for_workers(2, timeout=90)
        said = workers.client.run(
            lambda: [os.environ.get(name) for name in ("SLURMD_NODENAME", "MARK", "STACKYARD_LEAVE_AT")]
        )
        expected = workers.expected()
    record = {
        "workers": sorted(said.values()),
        "remarks": remarks,
        "expected": [expected, workers.expected()],
    }
    (folder / "said.json").write_text(json.dumps(record))
