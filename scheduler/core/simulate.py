"""The same dispatcher in virtual time: how a workload would fare, beside simple schedulers and a bound."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from scheduler.core.baselines import BASELINES, Baseline
from scheduler.core.bound import makespan_bound
from scheduler.core.dispatcher import Dispatcher
from scheduler.core.engine import Engine, Outcome
from scheduler.core.footprint import Estimates
from scheduler.core.policy import Policy
from scheduler.core.trace import Trace


@dataclass(frozen=True)
class Simulation:
    """A simulated run, the bound, and the baselines by name.

    `wall_s` is the real time of the dispatcher's run.
    """

    trace: Trace
    outcome: Outcome
    bound_s: float
    wall_s: float
    baselines: dict[str, Outcome] = field(default_factory=dict)

    @property
    def decisions_per_s(self) -> float:
        """Attempts placed for each second of real time, engine included."""
        return self.outcome.attempts / self.wall_s if self.wall_s > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The object that `simulate --json` prints."""
        return {
            "jobs": len(self.trace.jobs),
            "makespan_s": self.outcome.makespan_s,
            "bound_s": self.bound_s,
            "decisions_per_s": self.decisions_per_s,
            "oom_attempts": self.outcome.oom_attempts,
            "baselines": {
                name: {"makespan_s": outcome.makespan_s, "oom_attempts": outcome.oom_attempts}
                for name, outcome in self.baselines.items()
            },
        }


def simulate(
    trace: Trace,
    policy: Policy | None = None,
    *,
    clock: Callable[[], float],
    estimates: Estimates | None = None,
    baselines: Iterable[type[Baseline]] = BASELINES,
    keep_spans: bool = False,
) -> Simulation:
    """Run a trace through the dispatcher, and through each baseline.

    Parameters
    ----------
    clock
        Real seconds, for `decisions_per_s` only (`time.perf_counter`): nothing is decided by it.
    estimates
        What earlier runs have learned; it learns on. By default nothing is known.
    keep_spans
        Keep every attempt's place and time in `outcome.spans`, for a picture.
    """
    began = clock()
    outcome = run_dispatcher(trace, policy, estimates, keep_spans=keep_spans)
    wall_s = clock() - began
    compared = {baseline.name: run_baseline(trace, baseline) for baseline in baselines}
    return Simulation(trace, outcome, makespan_bound(trace), wall_s, compared)


def run_dispatcher(
    trace: Trace,
    policy: Policy | None = None,
    estimates: Estimates | None = None,
    *,
    keep_spans: bool = False,
) -> Outcome:
    """The dispatcher alone."""
    dispatcher = Dispatcher(policy, trace.devices, estimates)
    return Engine(trace, dispatcher, keep_spans=keep_spans).run()


def run_baseline(trace: Trace, baseline: type[Baseline]) -> Outcome:
    """One baseline alone."""
    engine: Engine | None = None

    def used(uuid: str) -> int:
        assert engine is not None
        return engine.used(uuid)

    engine = Engine(trace, baseline(trace.devices, used))
    return engine.run()
