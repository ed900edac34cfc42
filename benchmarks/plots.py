"""Pictures of the results, as SVG."""

from pathlib import Path
from typing import Any

from benchmarks.rows import Row

OURS, THEIRS, LIMIT = "#0b7285", "#adb5bd", "#c92a2a"


def _axes(count: int, size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "stackyard", "font.size": 9})
    from matplotlib import pyplot

    return pyplot.subplots(1, count, figsize=size, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def plot_ratios(rows: list[Row], path: Path) -> None:
    """Ours by theirs for each row, with its quartiles; left of the line ours is better."""
    shown = [row for row in rows if row.ratio is not None][::-1]
    if not shown:
        return
    figure, axes = _axes(1, (9, 1 + 0.21 * len(shown)))
    places = range(len(shown))
    for place, row in zip(places, shown, strict=True):
        ratio = row.ratio or 0.0
        low, high = row.low or ratio, row.high or ratio
        axes.plot([low, high], [place, place], color=OURS, linewidth=1)
        axes.plot([ratio], [place], "o", color=LIMIT if row.met is False else OURS, markersize=4)
    axes.axvline(1.0, color=THEIRS)
    axes.set_xscale("log")
    labels = [f"{row.what[:70]} | {row.peer[:32]}" for row in shown]
    axes.set_yticks(list(places), labels, fontsize=6)
    axes.set_xlabel("ours / theirs (median and quartiles); red: target missed")
    _save(figure, path)


def plot_scaling(found: dict[str, Any], path: Path) -> None:
    """Cost of a job by the number of jobs, and by the number of devices; what several clusters give."""
    figure, (jobs, devices, clusters) = _axes(3, (11, 3.2))
    for kind, style in (("no-op", "o-"), ("10 ms", "s--")):
        points = [point for point in found["jobs"] if point["kind"] == kind]
        for who, colour in (("ours", OURS), ("bare", THEIRS)):
            jobs.plot(
                [point["jobs"] for point in points],
                [1e3 * point[f"{who}_s"] for point in points],
                style,
                color=colour,
                label=f"{kind}, {'ours' if who == 'ours' else 'Dask submit'}",
            )
    jobs.set(xscale="log", yscale="log", xlabel="jobs", ylabel="ms a job")
    jobs.legend(fontsize=7)
    for name, label, colour in (("ours", "ours", OURS), ("peer", "first in, first out", THEIRS)):
        devices.plot(
            [point["devices"] for point in found["devices"]],
            [1e6 * point[name]["job_s"] for point in found["devices"]],
            "o-",
            color=colour,
            label=label,
        )
    devices.set(xscale="log", yscale="log", xlabel="simulated devices", ylabel="µs to place a job")
    devices.legend(fontsize=7)
    clusters.plot(
        [point["clusters"] for point in found["clusters"]],
        [100 * point["kept"] for point in found["clusters"]],
        "o-",
        color=OURS,
    )
    clusters.set(xscale="log", xlabel="Dask clusters, a driver each", ylabel="% of the devices' time used")
    _save(figure, path)
