"""The common table: one row for each thing that was measured beside a peer."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.measure import Ratio


@dataclass(frozen=True, slots=True)
class Row:
    """Ours beside one peer.

    Attributes
    ----------
    ratio, low, high
        Ours by theirs, the median and the quartiles over the rounds (over the seeds where it is simulated).
        None where the peer could not take part.
    target
        What `ratio` is held to, such as "<= 1.3"; "" if it isn't.
    note
        Why there are no figures, or what else should be known.
    headline
        It belongs into the README's short table.
    """

    benchmark: str
    what: str
    peer: str
    ours: str = ""
    theirs: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    target: str = ""
    note: str = ""
    headline: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none, or nothing to say."""
        if not self.target or self.ratio is None:
            return None
        sign, _, limit = self.target.partition(" ")
        return self.ratio >= float(limit) if sign == ">=" else self.ratio <= float(limit)

    @classmethod
    def compared(cls, benchmark: str, what: str, peer: str, ratio: Ratio, **more: Any) -> "Row":
        """A row with the figures of a ratio."""
        return cls(benchmark, what, peer, ratio=ratio.median, low=ratio.low, high=ratio.high, **more)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as they are kept in a results file."""
    return [asdict(row) for row in rows]


def rows_of(name: str, found: dict[str, Any]) -> list[Row]:
    """The rows of one benchmark's results; `name` is its file's."""
    if "rows" in found:
        return [Row(**row) for row in found["rows"]]
    return list(_OLDER[name](found)) if name in _OLDER else []


def targets_of(name: str, found: dict[str, Any]) -> list[tuple[str, bool]]:
    """Every target of one benchmark, with whether it is met."""
    told = [(f"{row.what}, beside {row.peer}", row.met) for row in rows_of(name, found)]
    kept = [(what, met) for what, met in told if met is not None]
    match name:
        case "policy":
            return [(target["name"], target["met"]) for target in found["targets"]]
        case "reservations":
            return [(str(target[0]), bool(target[4])) for target in found["targets"]]
        case "pools":
            parts = (found[key] for key in ("hit", "mix", "jax", "given_back", "flat"))
            names = ("a hit", "hit rate", "frozen into JAX", "memory given back", "memory stays flat")
            return [*kept, *((n, p["met"]) for n, p in zip(names, parts, strict=True) if "met" in p)]
        case "memcore_conversion":
            limited = [case for case in found["cases"] if case["limit"] or case["limit_us"]]
            return [(case["name"], case["met"]) for case in limited]
    return kept


def seconds(value: float) -> str:
    """A time with a unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _conversion(found: dict[str, Any]) -> Iterator[Row]:
    for case in found["cases"]:
        ours = case["medians_us"]["ours"]
        for peer, median in case["medians_us"].items():
            if peer == "ours":
                continue
            low, high = case.get("spread", {}).get(peer, (None, None))
            held = peer == case["against"] and case["limit"] is not None
            yield Row(
                "memcore_conversion",
                case["name"],
                peer,
                seconds(ours / 1e6),
                seconds(median / 1e6),
                ours / median,
                low,
                high,
                f"<= {case['limit']}" if held else "",
                headline=peer == "arraybridge" and ("uint16" in case["name"]),
            )


def _pools(found: dict[str, Any]) -> Iterator[Row]:
    for row in found["fresh_against_pooled"]:
        pages = "huge pages" if row["huge_pages"] else "small pages"
        low, high = row.get("spread", (None, None))
        yield Row(
            "pools",
            f"{row['work']} {row['mib']} MiB, {pages}",
            "fresh memory",
            f"{row['pooled_ms']} ms",
            f"{row['fresh_ms']} ms",
            row["ratio"],
            low,
            high,
            f"<= {row['target']}" if row["target"] else "",
            headline=row["mib"] == 256 and row["work"] == "fill",
        )


_PEERS = {
    "client.map": "client.map (simulated)",
    "GPU: 1": 'resources={"GPU": 1} (simulated)',
    "NVML-greedy": "NVML-greedy (simulated)",
    "ledger only": "ledger only (simulated)",
}


def _policy(found: dict[str, Any]) -> Iterator[Row]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found["mixes"]:
        groups.setdefault((row["mix"], row["scenario"]), []).append(row["runs"])
    for (mix, scenario), runs in groups.items():
        for name, peer in _PEERS.items():
            ours = [run["ours"] for run in runs]
            theirs = [run[name] for run in runs]
            ratio = Ratio.of((o["makespan_s"] for o in ours), (t["makespan_s"] for t in theirs))
            failed = [sum(each["oom_per_100"] for each in some) / len(some) for some in (ours, theirs)]
            yield Row.compared(
                "policy",
                f"{mix} jobs, {scenario}: makespan (and out-of-memory attempts per 100 jobs)",
                peer,
                ratio,
                ours=f"{sum(o['makespan_s'] for o in ours) / len(ours):.0f} s ({failed[0]:.1f})",
                theirs=f"{sum(t['makespan_s'] for t in theirs) / len(theirs):.0f} s ({failed[1]:.1f})",
                headline=(mix, scenario) == ("mixed", "hogs"),
            )


_OLDER = {"memcore_conversion": _conversion, "pools": _pools, "policy": _policy}
