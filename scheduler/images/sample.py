"""A small realistic data set: wells × sites × channels × z of a widefield microscope, 16-bit TIFF.

Cells are clusters of Gaussian blobs at depths of their own. Each plane sees a blob as wide as it is plus the
cone of light that the objective makes of it there, with the light conserved; on top come uneven illumination,
camera offset, read noise and shot noise.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from scheduler.images.atomic import atomic_file

PIXEL_UM = 0.325  # a 20× objective on a 6.5 µm camera
PLANE_UM = 1.0
OFFSET, GAIN, READ_NOISE = 100.0, 2.0, 3.0  # counts, counts per electron, counts
_CONE = (
    1.13 / 2
)  # tan(asin(0.75)) as the radius of the cone per µm of defocus, half of it as a Gaussian's sigma
_CELL_AREA_UM2 = 420.0  # one cell in so much area
_PARTS = 6  # blobs that make up one nucleus

Image = npt.NDArray[np.float32]


def write_sample(
    folder: str | Path,
    *,
    wells: int | Sequence[str] = ("A01", "A02", "B01", "B02"),
    sites: int = 2,
    channels: int = 2,
    planes: int = 12,
    size: int | tuple[int, int] = 512,
    seed: int = 0,
    overwrite: bool = False,
) -> list[Path]:
    """Write one TIFF for each plane, named `A01_s1_z00_c1.tif`, and give their paths; 100 MB by default.

    `wells` are names, or how many (by rows of a 96-well plate); `size` is (Y, X) in pixels. Sites and
    channels count from 1, planes from 0. Channel 1 shows nuclei, the others cell bodies with bright spots.
    Pixel size and plane distance are in ImageJ's metadata. On one machine the same seed gives the same bytes,
    and a stack doesn't depend on how many others there are. Files that have these bytes already stay.

    Raises
    ------
    ValueError
        A number below 1, no wells, or a well's name that can't be part of the pattern.
    FileExistsError
        A file of that name with other content is there, and `overwrite` is False.
    """
    names = _well_names(wells)
    height, width = (size, size) if isinstance(size, int) else size
    for what, number in {
        "sites": sites, "channels": channels, "planes": planes, "height": height, "width": width,
    }.items():  # fmt: skip
        if number < 1:
            raise ValueError(f"{what} must be at least 1, not {number}")
    digits = max(2, len(str(planes - 1)))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for well in names:
        for site in range(1, sites + 1):
            for channel in range(1, channels + 1):
                stack = sample_stack(
                    (planes, height, width), well=well, site=site, channel=channel, seed=seed
                )
                for z, plane in enumerate(stack):
                    paths.append(folder / f"{well}_s{site}_z{z:0{digits}d}_c{channel}.tif")
                    _write_plane(paths[-1], plane, overwrite=overwrite)
    return paths


def sample_stack(
    shape: tuple[int, int, int], *, well: str, site: int, channel: int, seed: int
) -> Iterator[npt.NDArray[np.uint16]]:
    """The planes [Y, X] of one stack of the sample, uint16, from the first to the last."""
    planes, height, width = shape
    entropy = [seed, site, *well.encode()]
    blobs = _blobs(np.random.default_rng(entropy), np.random.default_rng([channel, *entropy]), shape, channel)
    noise = np.random.default_rng([channel, 1, *entropy])
    light = _illumination(height, width)
    background = np.linspace(65.0, 35.0, width, dtype=np.float32)
    for z in range(planes):
        electrons = (_focus(blobs, z * PLANE_UM, height, width) + background) * light
        # a Gaussian stands for Poisson, which takes five times as long; from 20 electrons on they look alike
        sigma = np.sqrt(GAIN**2 * electrons + READ_NOISE**2)
        counts = OFFSET + GAIN * electrons + sigma * noise.standard_normal((height, width), dtype=np.float32)
        yield np.clip(np.rint(counts), 0, 65535).astype(np.uint16)


def _blobs(
    cells: np.random.Generator, parts: np.random.Generator, shape: tuple[int, int, int], channel: int
) -> Image:
    """Rows of (z, y, x, sigma_y, sigma_x, electrons at the centre); lengths in µm.

    `cells` decides where the cells are, the same in all channels, `parts` what a channel shows of them.
    """
    planes, height, width = shape
    depth, extent = (planes - 1) * PLANE_UM, (height * PIXEL_UM, width * PIXEL_UM)
    count = max(1, round(extent[0] * extent[1] / _CELL_AREA_UM2))
    centres = cells.uniform((depth * 0.25, 0, 0), (depth * 0.75, *extent), (count, 3))
    brightness = cells.lognormal(0.0, 0.35, count)

    def cluster(
        number: int, spread: float, sigma: tuple[float, float], peak: float
    ) -> npt.NDArray[np.float64]:
        where = np.repeat(centres, number, axis=0)
        where = where + parts.normal(0.0, 1.0, where.shape) * (spread / 2, spread, spread)
        sigmas = parts.uniform(*sigma, (len(where), 2))
        peaks = np.repeat(brightness, number) * parts.uniform(0.5, 1.5, len(where)) * peak
        return np.column_stack([where, sigmas, peaks])

    if channel == 1:
        return cluster(_PARTS, 1.6, (1.4, 2.4), 260.0).astype(np.float32)
    bodies = cluster(3, 3.5, (3.5, 6.0), 90.0)
    spots = cluster(4, 5.0, (0.2, 0.35), 700.0)
    return np.concatenate([bodies, spots]).astype(np.float32)


def _focus(blobs: Image, z: float, height: int, width: int) -> Image:
    """What the plane at depth `z` µm sees of the blobs, in electrons [Y, X].

    A Gaussian is separable, so a sum of n of them is one product of a [Y, n] and an [n, X] matrix.
    """
    depth, y, x, sigma_y, sigma_x, peak = blobs.T
    blur = (_CONE * (depth - z)) ** 2
    wide_y, wide_x = np.sqrt(sigma_y**2 + blur), np.sqrt(sigma_x**2 + blur)
    peak = peak * sigma_y * sigma_x / (wide_y * wide_x)
    rows = np.arange(height, dtype=np.float32)[:, None] * np.float32(PIXEL_UM)
    columns = np.arange(width, dtype=np.float32)[None, :] * np.float32(PIXEL_UM)
    along_y = np.exp(-0.5 * ((rows - y) / wide_y) ** 2) * peak
    along_x = np.exp(-0.5 * ((columns - x[:, None]) / wide_x[:, None]) ** 2)
    return np.asarray(along_y @ along_x, dtype=np.float32)


def _illumination(height: int, width: int) -> Image:
    """Brightest left of the centre, down to six tenths in the far corner."""
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    return np.asarray(1.0 - 0.12 * (y**2 + (x + 0.2) ** 2) - 0.08 * x, dtype=np.float32)


def _write_plane(path: Path, plane: npt.NDArray[np.uint16], *, overwrite: bool) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        plane,
        imagej=True,
        byteorder="<",
        resolution=(1 / PIXEL_UM, 1 / PIXEL_UM),
        metadata={"unit": "um", "spacing": PLANE_UM},
    )
    content = buffer.getvalue()
    if path.is_file() and path.read_bytes() == content:
        return
    with atomic_file(path, overwrite=overwrite, durable=False) as file:
        file.write(content)


def _well_names(wells: int | Sequence[str]) -> list[str]:
    if isinstance(wells, int):
        if not 1 <= wells <= 96:
            raise ValueError(f"wells must be 1 to 96, not {wells}")
        return [f"{'ABCDEFGH'[number // 12]}{number % 12 + 1:02d}" for number in range(wells)]
    names = list(dict.fromkeys(wells))
    if not names:
        raise ValueError("wells must be 1 or more names")
    for name in names:
        if not name.isalnum():
            raise ValueError(f"a well's name is of letters and digits, not {name!r}")
    return names
