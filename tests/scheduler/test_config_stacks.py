"""Named stacks, arrays from files and write options in a config, and what is refused of them."""

from pathlib import Path

import pytest

from scheduler.config import ConfigError, RunConfig, load_config
from scheduler.images.options import WriteOptions
from scheduler.screens.check import check_steps

TWO = "inputs: {image: {channel: 1}, nuclei: {channel: 2}}"
NAME = "{well}_s{site}"


def load(folder: Path, *steps: str, output: str = f"name: '{NAME}'") -> RunConfig:
    path = folder / "c.yaml"
    lines = "".join(f"  - {{use: my:step, {step}}}\n" for step in steps)
    path.write_text(
        'input: {path: in, pattern: "{well}_s{site}_z{z}_c{channel}.tif"}\n'
        f"steps:\n{lines}"
        f"output: {{path: out, {output}}}\n"
    )
    return load_config(path)


def test_the_first_step_with_inputs_chooses_the_stacks_of_a_job(tmp_path: Path) -> None:
    config = load(tmp_path, "with: {}", TWO, "inputs: {first: stack}")
    assert config.chosen_inputs == {"image": {"channel": (1,)}, "nuclei": {"channel": (2,)}}
    assert load(tmp_path, "with: {}").chosen_inputs == {}
    assert load(tmp_path, "outputs: [low, high]", "inputs: [low, high]").chosen_inputs == {}


def test_a_config_with_all_of_it_survives_the_journal(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        f"{TWO}, outputs: [labels, distance], arrays: {{flat: flat.tif}}",
        "inputs: [labels]",
        output=f"name: '{NAME}', format: ome-zarr, chunks: [1, 64, 64], levels: 3, downsample: nearest, "
        "zarr_version: '0.4'",
    )
    assert config.steps[0].arrays == {"flat": (tmp_path / "flat.tif").resolve()}
    assert config.output.options == WriteOptions("default", "0.4", (1, 64, 64), 3, "nearest")
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("steps", "output", "expected"),
    [
        (
            [TWO],
            "name: '{well}_c{channel}'",
            "output.name: there is no field 'channel': the stacks of a job differ",
        ),
        (
            ["inputs: {image: {chanel: 1}}"],
            None,
            "3:45: steps[0].inputs.image.chanel: there is no field 'chanel'; did you mean 'channel'?",
        ),
        ([f"{TWO}, outputs: [a, b]"], None, "output.name: a job gives a, b: put {stack} into the name"),
        (
            [f"{TWO}, outputs: [labels]", "inputs: [labls]"],
            None,
            "steps[1].inputs.labls: no stack 'labls' comes to this step; there is only 'labels'",
        ),
        (
            [f"{TWO}, outputs: [labels, distance]", "inputs: [labls]"],
            "name: '{well}_{stack}'",
            "there are labels, distance; did you mean 'labels'?",
        ),
        (["inputs: [image]"], None, "choose it among the input's by fields, as in {image: {channel: 1}}"),
        (
            ["inputs: {image: {channel: 1}, nuclei: image}"],
            None,
            "steps[0].inputs.nuclei: a step's inputs are",
        ),
        ([TWO, "inputs: {more: {channel: 3}}"], None, "steps[1].inputs.more: step 1, the first one with"),
        (["inputs: {image: 3}"], None, "steps[0].inputs.image: expected text"),
        (["inputs: [image, image]"], None, "steps[0].inputs: names a stack twice"),
        (["outputs: [a, a]"], None, "steps[0].outputs: names a stack twice"),
        (["inputs: {../a: {channel: 1}}"], None, "steps[0].inputs.../a: string should match"),
        (
            ["with: {}"],
            "name: '{well}', levels: 3",
            "output.levels: only ome-zarr has it, and format is ome-tiff",
        ),
        (["with: {}"], "name: '{well}', compression: zip", "there is no compression 'zip'"),
        (
            ["with: {}"],
            "name: '{well}', format: ome-zarr, compression: lzw",
            "output.compression: ome-zarr has no compression 'lzw'",
        ),
        (
            ["with: {}"],
            "name: '{well}', format: ome-zarr, levels: 99",
            "output.levels: levels must be 1 to 16",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_its_place(
    tmp_path: Path, steps: list[str], output: str | None, expected: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, *steps, output=output or f"name: '{NAME}'")
    assert expected in str(raised.value)


def test_a_field_called_stack_is_in_the_way_of_several_results(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        'input: {path: in, pattern: "{stack}_z{z}.tif"}\n'
        "steps: [{use: my:step, outputs: [a, b]}]\n"
        "output: {path: out, name: '{stack}'}\n"
    )
    with pytest.raises(ConfigError, match=r"a job gives a, b, and the pattern has a field \{stack\}"):
        load_config(path)
    path.write_text(path.read_text().replace(", outputs: [a, b]", ""))
    load_config(path)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_an_array_that_cannot_be_read_is_the_configs_fault(tmp_path: Path, damage: str) -> None:
    (tmp_path / "c.yaml").write_text(
        'input: {path: in, pattern: "{well}_z{z}.tif"}\n'
        "steps:\n  - use: flat_field\n    arrays: {flat: flat.tif}\n"
        "output: {path: out, name: '{well}'}\n"
    )
    if damage == "damaged":
        (tmp_path / "flat.tif").write_bytes(b"II*\x00")
    with pytest.raises(ConfigError, match=r"c.yaml:4:20: steps\[0\].arrays.flat: .*flat.tif") as raised:
        check_steps(load_config(tmp_path / "c.yaml"))
    assert ("there is no such file" in str(raised.value)) == (damage == "missing")
