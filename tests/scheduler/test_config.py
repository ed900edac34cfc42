"""A config file is read whole, or refused with every problem's place in it."""

import json
import pickle
from pathlib import Path

import pytest

from scheduler.config import ConfigError, RunConfig, load_config
from scheduler.config.cluster import seconds_of

WHOLE = """\
input:   {path: data/plate1, pattern: "{well}_s{site}_z{z}_c{channel}.tif", stack_along: z,
          select: {well: [A01, "B*"], site: [01, 2]}}
steps:
  - use: gaussian
    with: {sigma: 2.0}
    memory: [cupy, torch, numpy]
  - use: skimage.restoration:denoise_tv_chambolle
    declare: {input: numpy, output: numpy, splittable: z, halo: [1, 0, 0], workspace: 64MiB}
  - use: mylab.cells:segment
output:  {path: out, format: ome-tiff, name: "{well}_s{site}_c{channel}"}
devices: {gpus: auto, cpu: true, headroom: 512MiB}
memory:  {on_pressure: wait, host_limit: 75%, reproducible: true}
jobs:    {timeout_s: 60, priority: 2, max_failures: 3}
cluster: {kind: local}
"""

LEAST = """\
input: {path: in, pattern: "{well}_z{z}.tif"}
steps: [{use: gaussian}]
output: {path: out, name: "{well}"}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def problems(path: Path) -> list[str]:
    """What is wrong with the file at `path`, each as `line:column: what`."""
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert all(line.startswith(f"{path}") for line in str(caught.value).splitlines())
    return [line.removeprefix(f"{path}:").strip() for line in str(caught.value).splitlines()]


def test_whole_config(write, tmp_path):
    config = load_config(write(WHOLE))
    assert config.input.path == tmp_path / "data/plate1"
    assert config.input.select == {"well": ("A01", "B*"), "site": ("01", 2)}
    assert [step.use for step in config.steps] == [
        "gaussian",
        "skimage.restoration:denoise_tv_chambolle",
        "mylab.cells:segment",
    ]
    assert config.steps[0].with_ == {"sigma": 2.0}
    assert config.steps[0].memory == ("cupy", "torch", "numpy")
    declare = config.steps[1].declare
    assert declare is not None
    assert (declare.input, declare.output, declare.splittable) == (("numpy",), "numpy", "z")
    assert (declare.halo, declare.workspace) == ((1, 0, 0), 64 << 20)
    assert (config.output.path, config.output.format) == (tmp_path / "out", "ome-tiff")
    assert (config.devices.gpus, config.devices.cpu, config.devices.headroom) == ("auto", True, 512 << 20)
    assert (config.memory.on_pressure, config.memory.reproducible) == ("wait", True)
    assert (config.jobs.timeout_s, config.jobs.priority, config.jobs.max_failures) == (60, 2, 3)
    assert config.cluster.kind == "local"
    assert config.config_file == tmp_path / "run.yaml"


def test_defaults(write):
    config = load_config(write(LEAST))
    assert config.input.stack_along == "z"
    assert config.output.format == "ome-tiff"
    assert (config.devices.gpus, config.devices.cpu, config.devices.headroom) == ("auto", True, 512 << 20)
    assert (config.memory.on_pressure, config.memory.host_limit) == ("earliest-finish", "75%")
    assert (config.jobs.timeout_s, config.jobs.max_failures) == (3600, 10)


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        LEAST,
        LEAST + "cluster: {kind: address, address: 'tcp://head:8786'}\n",
        LEAST + "cluster: {kind: slurm, cores: 4, memory: 4GiB, prologue: [a, b], env: {A: b}}\n",
    ],
    ids=["whole", "least", "address", "slurm"],
)
def test_round_trips_through_json_and_pickle(write, text):
    config = load_config(write(text))
    assert RunConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_frozen(write):
    config = load_config(write(LEAST))
    with pytest.raises(ValueError, match="frozen"):
        config.devices.cpu = False


def test_absolute_and_home_paths(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = LEAST.replace("path: in", "path: /data/in").replace("path: out", "path: ~/out")
    config = load_config(write(text))
    assert config.input.path == Path("/data/in")
    assert config.output.path == tmp_path / "home/out"


def test_relative_paths_count_from_the_file_not_from_the_working_directory(write, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = write(LEAST)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(Path("..") / path.name).input.path == tmp_path / "in"


@pytest.mark.parametrize(
    ("written", "nbytes"),
    [("512MiB", 512 << 20), ("1.5GiB", 3 << 29), ("2 GB", 2 * 10**9), (4096, 4096), (0, 0)],
)
def test_sizes(write, written, nbytes):
    config = load_config(write(LEAST + f"devices: {{headroom: {written}}}\n"))
    assert config.devices.headroom == nbytes


@pytest.mark.parametrize("written", ["-1", "1.5", "true", "8GiX", "75%", "lots", "1e3", "[]"])
def test_not_sizes(write, written):
    assert problems(write(LEAST + f"devices: {{headroom: {written}}}\n"))[0].startswith(
        "4:21: devices.headroom: " + ("a size can't be negative" if written == "-1" else "")
    )


@pytest.mark.parametrize(
    ("written", "nbytes"), [("75%", 750), ("12.5 %", 125), ("100%", 1000), ("300B", 300), (7, 7)]
)
def test_host_limit_in_bytes(write, written, nbytes):
    config = load_config(write(LEAST + f"memory: {{host_limit: {written}}}\n"))
    assert config.memory.host_limit_bytes(1000) == nbytes


@pytest.mark.parametrize("written", ["0%", "101%", "%", "-5%", "nan%"])
def test_host_limit_outside_its_range(write, written):
    assert problems(write(LEAST + f"memory: {{host_limit: '{written}'}}\n")) == [
        "4:22: memory.host_limit: expected a share of host memory from above 0% to 100%"
    ]


@pytest.mark.parametrize(("written", "gpus"), [("auto", "auto"), ("[0, 2]", (0, 2)), ("[]", ())])
def test_gpus(write, written, gpus):
    assert load_config(write(LEAST + f"devices: {{gpus: {written}}}\n")).devices.gpus == gpus


def test_virtual_gpus(write):
    gpus = load_config(write(LEAST + "devices: {gpus: {virtual: [8GiB, 512MiB]}}\n")).devices.gpus
    assert gpus.virtual == (8 << 30, 512 << 20)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("gpus: all", "4:17: devices.gpus: expected 'auto'"),
        ("gpus: [0, -1]", "4:21: devices.gpus[1]: should be greater than or equal to 0"),
        ("gpus: [true]", "4:18: devices.gpus[0]: expected a whole number"),
        ("gpus: [0, 0]", "4:17: devices.gpus: names a device twice"),
        ("gpus: {virtual: []}", "4:27: devices.gpus.virtual: needs at least one entry"),
        ("gpus: {virtual: [0]}", "4:28: devices.gpus.virtual[0]: should be greater than 0"),
        ("gpus: [], cpu: false", "4:26: devices.cpu: no GPUs and cpu: false leave nothing to run on"),
    ],
)
def test_gpus_refused(write, written, problem):
    assert problems(write(LEAST + f"devices: {{{written}}}\n")) == [problem]


def test_a_cluster_that_runs_already(write):
    cluster = load_config(write(LEAST + "cluster: {kind: address, address: 'tls://head:8786'}\n")).cluster
    assert (cluster.kind, cluster.address) == ("address", "tls://head:8786")


def test_slurm_whole(write):
    text = """\
cluster:
  kind: slurm
  inside: true
  nodes: 3
  cores: 16
  memory: 64GiB
  gpus: 2
  walltime: 1-06:00:00
  drain_s: 300
  partition: gpu
  account: lab7
  processes: 4
  interface: ib0
  driver_interface: eth1
  encrypt: false
  python: /opt/env/bin/python
  env: {SCRATCH: "/scratch/$USER"}
  prologue: |
    module load cuda
    ulimit -n 4096
  directives: [--qos=long, -C a100]
  skip_directives: [--mem]
  driver: {partition: short, cores: 1, memory: 2GiB, walltime: 36:00:00, directives: [--qos=quick]}
"""
    cluster = load_config(write(LEAST + text)).cluster
    assert cluster.model_fields_set == set(type(cluster).model_fields)
    assert cluster.driver.model_fields_set == set(type(cluster.driver).model_fields)
    assert (cluster.memory, cluster.drain_s) == (64 << 30, 300)
    assert seconds_of(cluster.walltime) == 30 * 3600
    assert seconds_of(cluster.driver.walltime) == 36 * 3600
    assert cluster.env == {"SCRATCH": "/scratch/$USER"}
    assert cluster.prologue == ("module load cuda", "ulimit -n 4096")
    assert cluster.directives == ("--qos=long", "-C a100")


def test_slurm_at_least(write):
    cluster = load_config(write(LEAST + "cluster: {kind: slurm, cores: 2, memory: 4GiB}\n")).cluster
    assert (cluster.nodes, cluster.gpus, cluster.walltime, cluster.encrypt) == (1, 0, "01:00:00", True)
    assert (cluster.partition, cluster.processes, cluster.driver.walltime) == (None, None, None)


def test_an_allocation_that_is_there_needs_no_figures(write):
    cluster = load_config(write(LEAST + "cluster: {kind: slurm, inside: true}\n")).cluster
    assert (cluster.cores, cluster.memory) == (None, None)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("kind: slurmm", "4:17: cluster.kind: expected 'local', 'address' or 'slurm'"),
        ("partition: gpu", "4:10: cluster.kind: missing"),
        ("kind: local, cores: 3", "4:24: unknown key 'cluster.cores' among kind, metrics_port"),
        ("kind: address", "4:10: cluster.address: missing"),
        (
            "kind: address, address: head",
            "4:35: cluster.address: expected the address of a Dask scheduler, such as tcp://10.0.0.1:8786",
        ),
        (
            "kind: slurm, inside: true, partion: gpu",
            "4:38: unknown key 'cluster.partion'; did you mean 'partition'?",
        ),
        (
            "kind: slurm, inside: true, driver: {corse: 1}",
            "4:47: unknown key 'cluster.driver.corse'; did you mean 'cores'?",
        ),
        (
            "kind: slurm, memory: 4GiB",
            "4:10: cluster.cores: missing; a job for workers needs cores and memory",
        ),
        ("kind: slurm, inside: true, partition: a b", "4:49: cluster.partition: expected one word"),
        (
            "kind: slurm, inside: true, directives: [qos=long]",
            "4:51: cluster.directives[0]: expected an option of sbatch, such as --qos=long",
        ),
        (
            'kind: slurm, inside: true, directives: ["--qos=a\\nrm"]',
            "4:51: cluster.directives[0]: expected one line of text",
        ),
        (
            "kind: slurm, inside: true, drain_s: 3600",
            "4:47: cluster.drain_s: 3600 seconds leave nothing of walltime 01:00:00",
        ),
    ],
)
def test_clusters_refused(write, written, problem):
    assert problems(write(LEAST + f"cluster: {{{written}}}\n")) == [problem]


@pytest.mark.parametrize("written", ["90", '"1:30"', "00:00:00", "1-00", "12:60:00", "true"])
def test_not_wall_times(write, written):
    (found,) = problems(write(LEAST + f"cluster: {{kind: slurm, inside: true, walltime: {written}}}\n"))
    assert found.startswith("4:48: cluster.walltime: expected hours:minutes:seconds such as 12:00:00")


def test_every_problem_at_once_with_its_place_and_the_nearest_key(write):
    text = """\
input:   {path: data, patern: "{well}_z{z}.tif"}
steps:
  - use: gaussian
    with: {sigma: 2.0}
    memory: 3
  - use: 7
    declare: {inputs: numpy, halo: [1, 2]}
    wiht: {}
output:  {path: out, format: ome-tif, name: "{well"}
memory:  {on_pressure: earliest, reproducible: no}
jobs:    {timeout_s: -1, priority: 0.5, max_failures: 0}
clutser: {kind: local}
config_file: x
"""
    assert problems(write(text)) == [
        "1:10: input.pattern: missing",
        "1:23: unknown key 'input.patern'; did you mean 'pattern'?",
        "5:13: steps[0].memory[0]: expected text; put it in quotes if it looks like something else",
        "6:10: steps[1].use: expected text; put it in quotes if it looks like something else",
        "7:14: steps[1].declare.input: missing",
        "7:15: unknown key 'steps[1].declare.inputs'; did you mean 'input'?",
        "7:36: steps[1].declare.halo[2]: missing",
        "8:5: unknown key 'steps[1].wiht'; did you mean 'with'?",
        "9:30: output.format: there is no output format 'ome-tif'; did you mean 'ome-tiff'?",
        "9:45: output.name: expected '}' before end of string",
        "10:24: memory.on_pressure: expected 'earliest-finish', 'cpu', 'wait' or 'fail'",
        "10:48: memory.reproducible: expected true or false",
        "11:22: jobs.timeout_s: should be greater than 0",
        "11:36: jobs.priority: expected a whole number",
        "11:55: jobs.max_failures: should be greater than or equal to 1",
        "12:1: unknown key 'clutser'; did you mean 'cluster'?",
        "13:1: unknown key 'config_file' among input, steps, output, devices, memory, jobs, cluster",
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            'name: "{well}"',
            'name: "{wel}"',
            "3:27: output.name: there is no field 'wel'; did you mean 'well'?",
        ),
        (
            'name: "{well}"',
            'name: "{z}"',
            "3:27: output.name: there is no field 'z' among well, ",
        ),
        (
            'tif"}',
            'tif", select: {lens: 1}}',
            "1:55: input.select: there is no field 'lens' among well, z",
        ),
        (
            "{well}_z{z}",
            "{well}{z}",
            "1:28: input.pattern: fields {well} and {z} touch",
        ),
        (
            'tif"}',
            'tif", select: {well: [1.5]}}',
            "1:63: input.select.well[0]: expected text or a whole number",
        ),
        ('tif"}', 'tif", select: {well: []}}', "1:62: input.select.well: needs at least one entry"),
        ("steps: [{use: gaussian}]", "steps: []", "2:8: steps: needs at least one entry"),
        ("steps: [{use: gaussian}]", "steps: gaussian", "2:8: steps: expected a list"),
        ("steps: [{use: gaussian}]", "steps: [gaussian]", "2:9: steps[0]: expected a mapping of keys"),
        ('tif"}', 'tif", stack_along: zz}', "1:60: input.stack_along: there is no field 'zz'; did you"),
        ("path: out", "path: 3", "3:16: output.path: expected a path"),
        ("path: out", "path: ~no-such-user-here/x", "3:16: output.path: could not determine home directory"),
        ("path: out", 'path: ""', "3:16: output.path: expected a path"),
        ("path: out", 'path: "a\\0b"', "3:16: output.path: a path can't hold a NUL character"),
    ],
)
def test_refused_values(write, old, new, problem):
    (found,) = problems(write(LEAST.replace(old, new)))
    assert found.startswith(problem)


def test_missing_sections_are_named(write):
    assert problems(write("jobs: {}\n")) == [
        "1:1: input: missing",
        "1:1: output: missing",
        "1:1: steps: missing",
    ]


def test_axes_inside_of_files_are_fields_too(write):
    text = LEAST.replace("{well}_z{z}.tif", "{well}.tif").replace(
        'name: "{well}"', 'name: "{well}_{channel}"'
    )
    assert load_config(write(text)).output.name == "{well}_{channel}"


def test_error_pickles(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write("a: 1\n"))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.problems == caught.value.problems
    assert str(copy) == str(caught.value)
