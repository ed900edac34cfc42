"""`stackyard plan` tells what a run would do, and changes nothing."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from scheduler.config import load_config
from scheduler.core.footprint import Estimates
from scheduler.core.model import DeviceKind
from scheduler.execution.forecast import forecast
from scheduler.execution.jobs import dispatcher_job
from scheduler.execution.plans import job_plans
from scheduler.execution.prepare import look
from scheduler.host.estimates import default_estimates_path, save_estimates
from scheduler.images.sample import write_sample
from scheduler.screens import cli

CONFIG = """\
input: {path: img, pattern: "{well}_s{site}_z{z}_c{channel}.tif"}
steps:
  - use: gaussian
    with: {sigma: 1}
    memory: [numpy]
output: {path: out, name: "{well}_s{site}_c{channel}"}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four stacks of 3 × 16 × 16 uint16, two cores, and nothing learned yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("scheduler.execution.devices.usable_cores", lambda: 2)
    write_sample(tmp_path / "img", wells=1, sites=2, channels=2, planes=3, size=16)
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["plan", *map(str, arguments)])


def learn(config: Path, *, cpu_seconds: float) -> None:
    """What earlier runs of this config have learned: how long each of its jobs takes on the CPU."""
    prepared = look(load_config(config))
    estimates = Estimates()
    for prepared_job in prepared.jobs:
        request = prepared.request(prepared_job, run_id="earlier", overwrite=False)
        plans = job_plans(prepared.chain.steps, *request.form, {DeviceKind.CPU: ("numpy",)})
        job = dispatcher_job(request, plans)
        estimates.observe_seconds(job.learns_as, job.plans[0], "cpu", cpu_seconds)
    save_estimates(estimates, default_estimates_path())


def test_jobs_footprint_and_device_without_any_measurement(config: Path) -> None:
    found = forecast(load_config(config))
    ((form, jobs, (plan,)),) = [(each.form, each.jobs, each.whole) for each in found.forms]
    assert (form, jobs) == (((3, 16, 16), "uint16"), 4)
    assert (plan.plan.name, plan.plan.memory_types, plan.device_bytes) == ("cpu:numpy", ("numpy",), 0)
    # At least the stack of uint16 and its result in float32.
    assert plan.host_bytes >= 3 * 16 * 16 * (2 + 4)
    assert (found.expected_s, found.placements, dict(plan.seconds)) == (None, None, {})
    assert [device.name for device, _ in found.devices] == ["cpu"]


def test_nothing_is_written_or_started(config: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert invoke(config).exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_time_and_placements_by_simulation_once_rates_are_measured(config: Path) -> None:
    learn(config, cpu_seconds=10.0)
    found = forecast(load_config(config))
    # Four jobs of ten seconds, two at a time.
    assert found.expected_s == pytest.approx(20.0)
    assert found.placements == {"cpu": 4}
    text = invoke(config).stdout
    assert "Time     about 20 s, by simulation with measured rates" in text
    assert "10.0" in text


def test_stacks_that_fit_only_in_blocks_are_planned_in_blocks(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    write_sample(tmp_path / "big", wells=1, sites=1, channels=1, planes=8, size=256)
    text = CONFIG.replace("memory: [numpy]", "memory: [torch]").replace("img", "big")
    config.write_text(text + "devices: {gpus: {virtual: [3MiB]}, cpu: false}\n")
    found = forecast(load_config(config))
    ((whole,), *_) = (form.whole for form in found.forms)
    assert whole.device_bytes > 3 << 20
    assert min(plan.device_bytes for plan in found.forms[0].blocks(whole)) < 3 << 20
    assert f"{whole.plan.name} can be cut, where the whole doesn't fit" in invoke(config).stdout


def test_screen(config: Path, tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in invoke(config).stdout.splitlines()]
    assert lines[:3] == [
        "Input 4 stacks of 3 × 16 × 16 uint16, 1.5 KiB each",
        "Steps gaussian",
        f"Results {tmp_path / 'out/A01_s1_c1.ome.tif'} and so on",
    ]
    assert any(line.startswith("cpu:numpy numpy – ") and line.endswith("unmeasured") for line in lines)
    assert lines[-1].startswith("Time not known before a run has measured this chain")


def test_several_stacks_in_a_job(config: Path, tmp_path: Path) -> None:
    (tmp_path / "plansteps.py").write_text("def ratio(image, nuclei):\n    return image\n")
    config.write_text(
        CONFIG.replace('_c{channel}"}\n', '"}\n').replace(
            "output:",
            "  - use: plansteps:ratio\n"
            "    declare: {input: numpy}\n"
            "    inputs: {image: {channel: 1}, nuclei: {channel: 2}}\n"
            "output:",
        )
    )
    lines = [" ".join(line.split()) for line in invoke(config).stdout.splitlines()]
    assert lines[:3] == [
        "Input 2 jobs of image 3 × 16 × 16 uint16, nuclei 3 × 16 × 16 uint16; 3 KiB each",
        "Steps gaussian → ratio",
        f"Results {tmp_path / 'out/A01_s1.ome.tif'} and so on",
    ]
    record = json.loads(invoke(config, "--json").stdout)
    stack = {"shape": [3, 16, 16], "dtype": "uint16"}
    assert (record["jobs"], record["forms"][0]["jobs"]) == (2, 2)
    assert record["forms"][0]["stacks"] == {"image": stack, "nuclei": stack}


def test_json(config: Path) -> None:
    record = json.loads(invoke(config, "--json").stdout)
    assert record["jobs"] == 4
    assert record["steps"] == ["gaussian"]
    (form,) = record["forms"]
    assert (form["shape"], form["dtype"], form["jobs"]) == ([3, 16, 16], "uint16", 4)
    assert [plan["name"] for plan in form["plans"] if plan["blocks"] is None] == ["cpu:numpy"]
    (cpu,) = record["devices"]
    assert (cpu["name"], cpu["slots"], cpu["jobs"]) == ("cpu", 2, None)
    assert record["expected_s"] is None


def test_what_was_learned_and_is_damaged_is_named(config: Path) -> None:
    path = default_estimates_path()
    path.parent.mkdir(parents=True)
    path.write_text("{")
    result = invoke(config)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"stackyard: {path} is damaged")


def test_results_that_are_there_and_stacks_that_cannot_be_read(config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/A01_s1_c1.ome.tif").touch()
    for path in (tmp_path / "img").glob("A01_s2_z*_c1.tif"):
        path.write_bytes(path.read_bytes()[:100])
    record = json.loads(invoke(config, "--json").stdout)
    assert record["results"]["existing"] == 1
    (broken,) = record["unreadable"]
    assert "site-2" in broken["job"]
    assert record["forms"][0]["jobs"] == 3
    text = invoke(config).stdout
    assert "(1 result there already)" in text
    assert f"can't be read: {broken['job']}" in text


def test_virtual_gpus_show_conversions_and_say_what_they_are(config: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    text = CONFIG.replace("memory: [numpy]", "memory: [torch, numpy]")
    config.write_text(text + "devices: {gpus: {virtual: [64MiB, 32MiB]}}\n")
    record = json.loads(invoke(config, "--json").stdout)
    virtual, cpu = (plan for plan in record["forms"][0]["plans"] if plan["blocks"] is None)
    assert (virtual["memory_types"], cpu["memory_types"]) == (["torch"], ["numpy"])
    assert len(virtual["conversions"]) == 2
    assert virtual["device_bytes"] > 0
    assert [(each["name"], each["total_bytes"], each["virtual"]) for each in record["devices"][:2]] == [
        ("virtual0", 64 << 20, True),
        ("virtual1", 32 << 20, True),
    ]
    assert "virtual0, virtual1: virtual, an account of bytes and no hardware" in invoke(config).stdout


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("path: img", "path: gone", "gone doesn't exist"),
        ("gaussian", "gausian", "did you mean 'gaussian'?"),
        ("sigma: 1", "sigma: x", "steps[0]"),
        ("c{channel}.tif", "d{channel}.tif", "matches the pattern"),
    ],
)
def test_what_cannot_be_run_cannot_be_planned(config: Path, old: str, new: str, said: str) -> None:
    config.write_text(CONFIG.replace(old, new, 1))
    result = invoke(config)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


SLURM = "cluster: {kind: slurm, cores: 4, memory: 16GiB, account: lab7}\n"
ADDRESS = "cluster: {kind: address, address: 'tcp://10.0.0.1:8786'}\n"


def test_scripts_of_a_run_on_slurm(config: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue")
    config.write_text(CONFIG + SLURM)
    scripts = json.loads(invoke(config, "--json").stdout)["slurm"]
    assert list(scripts) == ["driver", "workers"]
    assert "#SBATCH --job-name=stackyard-driver\n" in scripts["driver"]
    assert f" run {config} --run-id RUN_FOLDER\n" in scripts["driver"]
    assert "#SBATCH --cpus-per-task=4\n" in scripts["workers"]
    assert "scheduler.execution.slurm_node" in scripts["workers"]
    text = invoke(config).stdout
    assert scripts["driver"] in text
    assert scripts["workers"] in text


def test_inside_an_allocation_workers_start_by_a_command(config: Path) -> None:
    config.write_text(CONFIG + "cluster: {kind: slurm, inside: true, nodes: 3}\n")
    scripts = json.loads(invoke(config, "--json").stdout)["slurm"]
    assert "#SBATCH --nodes=3\n" in scripts["driver"]
    assert scripts["workers"].startswith("srun --ntasks-per-node=1 ")


@pytest.mark.parametrize("cluster", [SLURM, ADDRESS])
def test_workers_of_a_cluster_decide(config: Path, cluster: str) -> None:
    if cluster is SLURM:
        pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue")
    # A GPU that isn't here may be there.
    config.write_text(CONFIG.replace("[numpy]", "[cupy, numpy]") + cluster + "devices: {gpus: [0, 7]}\n")
    learn(config, cpu_seconds=10.0)
    record = json.loads(invoke(config, "--json").stdout)
    assert (record["devices"], record["expected_s"]) == ([], None)
    (note,) = record["notes"]
    assert note.startswith("the cluster's workers decide which of these plans are used")
    kinds = {plan["name"] for plan in record["forms"][0]["plans"] if plan["blocks"] is None}
    # No GPU was asked of Slurm; an address may have any.
    assert kinds == ({"cpu:numpy"} if cluster is SLURM else {"cuda:cupy", "cpu:numpy"})
    assert " ".join(note.split()) in " ".join(invoke(config).stdout.split())


@pytest.mark.parametrize("cluster", [SLURM, ADDRESS])
def test_virtual_gpus_are_not_on_a_cluster(config: Path, cluster: str) -> None:
    config.write_text(CONFIG + cluster + "devices: {gpus: {virtual: [1GiB]}}\n")
    result = invoke(config)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "virtual GPUs are there with cluster kind local only" in result.stderr
