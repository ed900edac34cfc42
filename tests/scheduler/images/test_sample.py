"""The sample plate: the same bytes for the same seed, and physics that a deconvolution can count on."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from scheduler.images.sample import OFFSET, PIXEL_UM, PLANE_UM, sample_stack, write_sample
from scheduler.images.sources import find_stacks

PATTERN = "{well}_s{site}_z{z}_c{channel}.tif"
SMALL = {"wells": ("A01", "B02"), "sites": 1, "channels": 2, "planes": 3, "size": (48, 64)}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def stack(**options) -> np.ndarray:
    options = {"well": "A01", "site": 1, "channel": 1, "seed": 0} | options
    shape = options.pop("shape", (9, 256, 256))
    return np.stack(list(sample_stack(shape, **options)))


def test_names_shapes_and_physical_sizes(tmp_path):
    paths = write_sample(tmp_path, **SMALL)
    assert len(paths) == 12
    assert paths[0] == tmp_path / "A01_s1_z00_c1.tif"
    sources = find_stacks(tmp_path, PATTERN)
    assert [source.name for source in sources] == [
        f"well-{well}_site-1_channel-{channel}" for well in ("A01", "B02") for channel in (1, 2)
    ]
    for source in sources:
        assert (source.shape, source.dtype) == ((3, 48, 64), "uint16")
        assert source.physical_size_um == pytest.approx((PLANE_UM, PIXEL_UM, PIXEL_UM))
    with tifffile.TiffFile(paths[0]) as file:
        assert file.is_imagej


def test_the_default_is_about_100_mb():
    defaults = write_sample.__kwdefaults__
    planes = len(defaults["wells"]) * defaults["sites"] * defaults["channels"] * defaults["planes"]
    assert planes * defaults["size"] ** 2 * 2 == pytest.approx(100e6, rel=0.02)


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("one", 7), ("two", 7), ("other", 8)):
        write_sample(tmp_path / name, seed=seed, **SMALL)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert not set(digests(tmp_path / "one").values()) & set(digests(tmp_path / "other").values())


def test_a_stack_is_the_same_in_a_larger_plate(tmp_path):
    write_sample(tmp_path / "small", **SMALL)
    write_sample(tmp_path / "large", **(SMALL | {"wells": 14, "sites": 2, "channels": 3}))
    small, large = digests(tmp_path / "small"), digests(tmp_path / "large")
    assert all(large[name] == digest for name, digest in small.items() if name.startswith("A01"))
    assert "B02_s2_z02_c3.tif" in large


def test_every_stack_is_different(tmp_path):
    write_sample(tmp_path, **SMALL)
    assert len(set(digests(tmp_path).values())) == 12


def test_writing_again_changes_nothing_and_completes(tmp_path):
    paths = write_sample(tmp_path, **SMALL)
    before = paths[0].stat().st_mtime_ns
    whole = digests(tmp_path)
    paths[5].unlink()
    write_sample(tmp_path, **SMALL)
    assert digests(tmp_path) == whole
    assert paths[0].stat().st_mtime_ns == before


def test_somebody_elses_file_is_kept(tmp_path):
    (tmp_path / "A01_s1_z01_c1.tif").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"A01_s1_z01_c1.tif exists already"):
        write_sample(tmp_path, **SMALL)
    assert (tmp_path / "A01_s1_z01_c1.tif").read_bytes() == b"precious"
    write_sample(tmp_path, overwrite=True, **SMALL)
    assert tifffile.imread(tmp_path / "A01_s1_z01_c1.tif").shape == (48, 64)


def test_the_number_of_digits_fits_the_planes(tmp_path):
    paths = write_sample(tmp_path, wells=1, sites=1, channels=1, planes=101, size=8)
    assert (paths[0].name, paths[-1].name) == ("A01_s1_z000_c1.tif", "A01_s1_z100_c1.tif")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": 0}, "sites must be at least 1, not 0"),
        ({"planes": -1}, "planes must be at least 1, not -1"),
        ({"size": (0, 5)}, "height must be at least 1, not 0"),
        ({"wells": 97}, "wells must be 1 to 96, not 97"),
        ({"wells": ()}, "wells must be 1 or more names"),
        ({"wells": ("../A",)}, "letters and digits, not '../A'"),
    ],
)
def test_unusable_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_sample(tmp_path, **(SMALL | options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channel", [1, 2])
def test_the_ends_are_out_of_focus(channel):
    planes = stack(channel=channel, shape=(15, 256, 256)).astype(float)
    blocks = planes.reshape(15, 128, 2, 128, 2).mean((2, 4))  # less noise
    sharpness = (np.diff(blocks, axis=1) ** 2).mean((1, 2))
    assert sharpness[5:10].min() > 1.3 * max(sharpness[0], sharpness[-1])


def test_the_light_is_conserved_out_of_focus():
    means = stack(shape=(15, 512, 512)).astype(float).mean((1, 2)) - OFFSET
    assert means.max() / means.min() < 1.1


def test_the_channels_show_the_same_cells():
    nuclei, bodies = (stack(channel=channel)[4].astype(float) for channel in (1, 2))
    other = stack(channel=2, well="B01")[4].astype(float)
    same = np.corrcoef(nuclei.ravel(), bodies.ravel())[0, 1]
    assert same > 0.3
    assert same > np.corrcoef(nuclei.ravel(), other.ravel())[0, 1] + 0.2


def test_camera_offset_and_shot_noise():
    planes = stack(shape=(2, 512, 512)).astype(float)
    assert OFFSET < np.quantile(planes, 0.001) < OFFSET + 150
    # neighbouring pixels differ by their noise alone, which grows with the light
    noise = np.abs(np.diff(planes, axis=2))
    light = planes[:, :, :-1]
    dark, bright = light < np.quantile(light, 0.2), light > np.quantile(light, 0.9)
    assert noise[bright].mean() > 2 * noise[dark].mean()


def test_the_background_has_a_gradient():
    columns = np.quantile(stack(channel=1, shape=(1, 512, 512))[0], 0.2, axis=0)
    assert columns[:64].mean() > columns[-64:].mean() + 30
