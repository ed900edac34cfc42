"""What a stress test found: each figure from what was seen, with every problem in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from memcore.info import bytes_text
from scheduler.stress.evidence import Evidence
from scheduler.stress.workload import StressJob

OUT_OF_MEMORY = "out_of_memory"
DONE = "done"
# Of what is charged to devices, at least so many per cent must be memory that was really written to.
LEAST_TOUCHED = 1.0
# More attempts in a hundred jobs than this shouldn't run out of memory by anybody's fault but their own.
MOST_OOM = 2.0
# The promises of fewer jobs may come and go between two looks.
LEAST_SEEN = 4
NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True)
class StressAccount:
    """How a stress test ended. Bytes and seconds.

    Attributes
    ----------
    failed
        Jobs that ended otherwise than done, each with its reason in `problems`.
    lost
        Jobs that never ended, or are said to be done and left no result.
    duplicates
        Jobs that ended twice, ran unasked, or whose result was touched after they were reported as done.
    oom_attempts, oom_deliberate
        Attempts that ran out of memory; those of them at jobs that were made to under-estimate.
    reservations_left
        Promises and charges of the run that outlived its jobs.
    overcommit_bytes
        The most by which promises exceeded what a device had when they were made.
    bytes_charged, bytes_touched
        What jobs charged to devices, and what they really wrote of that.
    problems
        Everything that must not be, in words.
    notes
        What else is worth knowing.
    """

    jobs: int
    done: int
    failed: int
    lost: int
    duplicates: int
    wrong_values: int
    oom_attempts: int
    worker_kills: int
    reservations_left: int
    overcommit_bytes: int
    bytes_charged: int
    bytes_touched: int
    wall_s: float
    oom_deliberate: int
    virtual: bool
    seed: int
    interrupted: bool
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 if nothing is wrong, 1 if anything is, 130 if it was interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.problems else 0

    def to_json(self) -> dict[str, Any]:
        """The object that `stress --json` prints."""
        names = [name for name in self.__slots__ if name not in ("interrupted", "problems", "notes")]
        return {name: getattr(self, name) for name in names}


def judge(jobs: Sequence[StressJob], evidence: Evidence, *, virtual: bool, seed: int) -> StressAccount:
    """Hold what was seen against what must be."""
    known = {job.name for job in jobs}
    ended = {name for name in known if evidence.ends.get(name)}
    done = {name for name in ended if any(end.outcome == DONE for end in evidence.ends[name])}
    failed = ended - done
    lost = _lost(known, ended, done, evidence)
    duplicates = _duplicates(known, evidence)
    wrong = {name: end.wrong for name in sorted(done) for end in evidence.ends[name] if end.wrong}
    ooms = {name: entry.outcomes.count(OUT_OF_MEMORY) for name, entry in evidence.journal.items()}
    deliberate = sum(ooms.get(job.name, 0) for job in jobs if job.under_estimates)
    charged = sum(run.charged_bytes for run in evidence.step_runs)
    touched = sum(run.touched_bytes for run in evidence.step_runs if run.charged_bytes)
    problems = [
        *_named("lost", lost),
        *_named("double", duplicates),
        *_named("wrong", wrong),
        *_named("failed", {name: _reason(evidence, name) for name in sorted(failed)}),
        *(f"still promised or charged: {each}" for each in evidence.left[:NAMED_AT_MOST]),
        *(
            f"{bytes_text(excess)} more were promised on {uuid} than were there: "
            f"{evidence.watch.moments.get(uuid, '')}"
            for uuid, excess in evidence.watch.overcommit_bytes.items()
        ),
        *_too_light(evidence, charged, touched),
        *_unseen(evidence, done),
    ]
    return StressAccount(
        jobs=len(jobs),
        done=len(done),
        failed=len(failed),
        lost=len(lost),
        duplicates=len(duplicates),
        wrong_values=len(wrong),
        oom_attempts=sum(ooms.values()),
        worker_kills=len(evidence.kills),
        reservations_left=len(evidence.left),
        overcommit_bytes=evidence.watch.worst_bytes,
        bytes_charged=charged,
        bytes_touched=touched,
        wall_s=round(evidence.wall_s, 3),
        oom_deliberate=deliberate,
        virtual=virtual,
        seed=seed,
        interrupted=evidence.interrupted,
        problems=tuple(problems),
        notes=_notes(jobs, evidence, sum(ooms.values()) - deliberate),
    )


def _lost(known: set[str], ended: set[str], done: set[str], evidence: Evidence) -> dict[str, str]:
    lost: dict[str, str] = {}
    for name in sorted(known):
        entry = evidence.journal.get(name)
        if name not in ended:
            if not evidence.interrupted:
                lost[name] = f"never ended ({evidence.given_up})" if evidence.given_up else "never ended"
        elif name in evidence.missing:
            lost[name] = "is said to be done, and its result isn't there"
        elif name in done and (entry is None or entry.state != DONE):
            said = entry.state if entry else "nothing of it"
            lost[name] = f"is said to be done, and the journal says {said}"
    return lost


def _duplicates(known: set[str], evidence: Evidence) -> dict[str, str]:
    runs: dict[str, int] = {}
    for run in evidence.step_runs:
        runs[run.job] = runs.get(run.job, 0) + 1
    found: dict[str, str] = {}
    for name in sorted(known | runs.keys()):
        outcomes = evidence.journal[name].outcomes if name in evidence.journal else ()
        times = len(evidence.ends.get(name, ()))
        if times > 1:
            found[name] = f"was reported as ended {times} times"
        elif outcomes.count(DONE) > 1:
            found[name] = f"{outcomes.count(DONE)} of its attempts are done"
        elif runs.get(name, 0) > len(outcomes):
            found[name] = f"ran {runs[name]} times in {len(outcomes)} attempts"
        elif name in evidence.changed - evidence.missing:
            found[name] = "its result was written again after it was reported as done"
    return found


def _reason(evidence: Evidence, name: str) -> str:
    end = evidence.ends[name][-1]
    return f"{end.outcome}: {end.reason}"


def _named(what: str, jobs: dict[str, str]) -> list[str]:
    """A line for each of the first few jobs, and one for the rest."""
    lines = [f"{what}: {name} {said}" for name, said in list(jobs.items())[:NAMED_AT_MOST]]
    more = len(jobs) - len(lines)
    return [*lines, f"{what}: {more} more"] if more else lines


def _too_light(evidence: Evidence, charged: int, touched: int) -> Iterable[str]:
    if touched * 100 < charged * LEAST_TOUCHED and not evidence.interrupted:
        yield (
            f"the test was too light: {bytes_text(touched)} were written of {bytes_text(charged)} charged, "
            f"less than {LEAST_TOUCHED:g} %"
        )


def _unseen(evidence: Evidence, done: set[str]) -> Iterable[str]:
    if len(done) >= LEAST_SEEN and not evidence.watch.grants and not evidence.interrupted:
        yield f"{len(done):,} jobs are done, and nobody has seen a promise: what was promised isn't known"


def _notes(jobs: Sequence[StressJob], evidence: Evidence, careless: int) -> tuple[str, ...]:
    watch = evidence.watch
    notes = [f"{watch.grants:,} promises were seen in {watch.looks:,} looks at the reservation table"]
    if evidence.probe_faults:
        notes.append(f"{evidence.probe_faults:,} readings of probes failed or came late")
    slow = sum(job.slow_disk for job in jobs)
    if slow:
        notes.append(f"{slow:,} results were written to a slow disk")
    if evidence.kills:
        hit = sum(len(kill.jobs) for kill in evidence.kills)
        notes.append(f"the killed workers had {hit:,} jobs under way")
    if evidence.replaced:
        notes.append(
            f"{len(evidence.replaced)} results were in place when their worker died, and were made anew "
            "before their jobs were reported as done"
        )
    if jobs and careless * 100 > MOST_OOM * len(jobs):
        notes.append(
            f"{careless:,} attempts ran out of memory at jobs that declare what they need: more than "
            f"{MOST_OOM:g} in 100 jobs"
        )
    return tuple(notes)


def journal_text(evidence: Evidence) -> str:
    """How attempts ended, in one line: "1,998 done, 12 out_of_memory, 8 worker_died"."""
    counts: dict[str, int] = {}
    for entry in evidence.journal.values():
        for outcome in entry.outcomes:
            counts[outcome or "unfinished"] = counts.get(outcome or "unfinished", 0) + 1
    most_first = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {outcome}" for outcome, count in most_first)
