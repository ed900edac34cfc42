"""Steps that can't be resolved are named with their place in the config, all at once."""

from pathlib import Path

import pytest

from scheduler.config import ConfigError, RunConfig, load_config
from scheduler.screens.check import check_steps

TEXT = """\
input: {path: in, pattern: "{well}_z{z}.tif"}
steps:
  - use: gausian
  - use: gaussian
    with: {sigmaa: 1}
  - use: gaussian
    with: {sigma: -1}
  - use: no_such_module:function
  - {use: gaussian, with: {sigma: 1}}
output: {path: out, name: "{well}"}
"""


def problems_of(config: RunConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_steps(config)
    return str(caught.value).splitlines()


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return load_config(path)


def test_each_step_with_its_place(config):
    found = problems_of(config)
    places = [line.removeprefix(f"{config.config_file}:").partition(" ")[0] for line in found]
    assert places == ["3:10:", "5:20:", "7:19:", "8:10:"]
    assert "did you mean 'gaussian'?" in found[0]
    assert "steps[1].with.sigmaa" in found[1]
    assert "steps[2].with.sigma: gaussian: sigma is in pixels, zero or more" in found[2]
    assert "no module 'no_such_module'" in found[3]


def test_a_config_that_was_made_in_python_has_no_places(config):
    found = problems_of(config.model_copy(update={"config_file": None}))
    assert found[0].startswith("config: steps[0].use: no step 'gausian'")


def test_a_module_beside_the_config_is_found(tmp_path):
    (tmp_path / "beside_the_config_of_a_test.py").write_text(
        "from memcore import memory_types\n\n\n"
        "@memory_types('numpy')\n"
        "def invert(stack):\n"
        "    return ~stack\n"
    )
    text = TEXT[: TEXT.index("  - use: gausian")]
    text += "  - use: beside_the_config_of_a_test:invert\n" + TEXT[TEXT.index("output:") :]
    (tmp_path / "run.yaml").write_text(text)
    check_steps(load_config(tmp_path / "run.yaml"))
