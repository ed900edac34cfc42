"""Every way in which a run can be wrong is found in what was seen of it."""

import pytest

from scheduler.stress.account import judge
from scheduler.stress.diary import StepRun
from scheduler.stress.evidence import Evidence, JobEnd, JournalEntry
from scheduler.stress.kills import Kill
from scheduler.stress.watch import WatchReport
from scheduler.stress.workload import make_workload

GIB = 1 << 30
JOBS = make_workload(4, capacity=8 * GIB, under_estimate=25.0, seed=0)
(SLY,) = [job.name for job in JOBS if job.under_estimates]
NAMES = [job.name for job in JOBS]
HONEST = next(name for name in NAMES if name != SLY)


@pytest.fixture
def evidence() -> Evidence:
    """A run in which everything went well."""
    evidence = Evidence(wall_s=12.3456, watch=WatchReport(looks=10, grants=4))
    for name in NAMES:
        evidence.ends[name].append(JobEnd("done"))
        evidence.step_runs.append(StepRun(name, 1, 1000, 10, ended=True))
    evidence.journal = {name: JournalEntry("done", ("done",)) for name in NAMES}
    return evidence


def judged(evidence):
    return judge(JOBS, evidence, virtual=True, seed=7)


def test_a_run_in_which_all_went_well(evidence):
    account = judged(evidence)
    assert account.problems == ()
    assert account.exit_status == 0
    assert account.to_json() == {
        "jobs": 4,
        "done": 4,
        "failed": 0,
        "lost": 0,
        "duplicates": 0,
        "wrong_values": 0,
        "oom_attempts": 0,
        "worker_kills": 0,
        "reservations_left": 0,
        "overcommit_bytes": 0,
        "bytes_charged": 4000,
        "bytes_touched": 40,
        "wall_s": 12.346,
        "oom_deliberate": 0,
        "virtual": True,
        "seed": 7,
    }


def test_a_job_that_never_ended_is_lost(evidence):
    del evidence.ends[HONEST]
    account = judged(evidence)
    assert (account.lost, account.done, account.exit_status) == (1, 3, 1)
    assert account.problems == (f"lost: {HONEST} never ended",)


def test_a_job_that_is_done_without_its_result_is_lost_and_not_double(evidence):
    evidence.missing.add(HONEST)
    evidence.changed.add(HONEST)
    account = judged(evidence)
    assert (account.lost, account.duplicates, account.exit_status) == (1, 0, 1)


@pytest.mark.parametrize("entry", [None, JournalEntry("running", ("",)), JournalEntry("waiting", ("done",))])
def test_a_job_that_is_done_and_not_in_the_journal_is_lost(evidence, entry):
    evidence.journal = {**evidence.journal, HONEST: entry} if entry else {}
    evidence.step_runs.clear()
    account = judged(evidence)
    assert account.lost == (1 if entry else 4)
    assert account.exit_status == 1


def test_a_job_without_an_end_is_not_lost_when_the_run_was_interrupted(evidence):
    del evidence.ends[HONEST]
    evidence.interrupted = True
    account = judged(evidence)
    assert (account.lost, account.exit_status) == (0, 130)


def test_a_wrong_value_is_counted_and_named(evidence):
    evidence.ends[HONEST] = [JobEnd("done", wrong="has 1 wrong values of 24")]
    account = judged(evidence)
    assert (account.wrong_values, account.done, account.exit_status) == (1, 4, 1)
    assert account.problems == (f"wrong: {HONEST} has 1 wrong values of 24",)


def test_a_job_that_ends_twice_is_double(evidence):
    evidence.ends[HONEST].append(JobEnd("done"))
    account = judged(evidence)
    assert (account.duplicates, account.done, account.exit_status) == (1, 4, 1)


def test_a_job_with_two_attempts_that_are_done_is_double(evidence):
    evidence.journal = {**evidence.journal, HONEST: JournalEntry("done", ("done", "done"))}
    account = judged(evidence)
    assert (account.duplicates, account.exit_status) == (1, 1)


def test_a_job_whose_step_ran_more_often_than_it_was_started_is_double(evidence):
    evidence.step_runs.append(StepRun(HONEST, 2, 1000, 10, ended=True))
    account = judged(evidence)
    assert account.problems == (f"double: {HONEST} ran 2 times in 1 attempts",)
    evidence.journal = {**evidence.journal, HONEST: JournalEntry("done", ("worker_died", "done"))}
    assert judged(evidence).duplicates == 0


def test_a_step_of_a_job_that_nobody_knows_is_double(evidence):
    evidence.step_runs.append(StepRun("stranger", 2))
    assert judged(evidence).problems == ("double: stranger ran 1 times in 0 attempts",)


def test_a_result_that_changes_after_its_job_was_reported_as_done_is_double(evidence):
    evidence.changed.add(HONEST)
    account = judged(evidence)
    assert (account.duplicates, account.exit_status) == (1, 1)


def test_a_result_made_anew_before_its_job_was_reported_is_only_noted(evidence):
    evidence.replaced.add(HONEST)
    account = judged(evidence)
    assert (account.duplicates, account.exit_status) == (0, 0)
    assert any("made anew" in note for note in account.notes)


def test_a_failed_job_is_named_with_its_reason(evidence):
    evidence.ends[HONEST] = [JobEnd("set_aside", "its worker died twice")]
    account = judged(evidence)
    assert (account.failed, account.done, account.lost, account.exit_status) == (1, 3, 0, 1)
    assert account.problems == (f"failed: {HONEST} set_aside: its worker died twice",)


def test_out_of_memory_of_a_job_that_under_estimates_is_told_from_others(evidence):
    oom = JournalEntry("done", ("out_of_memory", "out_of_memory", "done"))
    evidence.journal = {**evidence.journal, SLY: oom}
    account = judged(evidence)
    assert (account.oom_attempts, account.oom_deliberate, account.exit_status) == (2, 2, 0)
    assert not any("out of memory" in note for note in account.notes)
    evidence.journal = {**evidence.journal, HONEST: oom}
    account = judged(evidence)
    assert (account.oom_attempts, account.oom_deliberate) == (4, 2)
    assert any("2 attempts ran out of memory at jobs that declare" in note for note in account.notes)


def test_what_is_left_of_promises_is_a_problem(evidence):
    evidence.left.append("5 bytes of GPU-1 for job00001 by process 77")
    account = judged(evidence)
    assert (account.reservations_left, account.exit_status) == (1, 1)


def test_promising_more_than_there_is_is_a_problem(evidence):
    evidence.watch = WatchReport(10, 5, {"V-0": 3 << 20, "V-1": 1 << 20}, {"V-0": "5 MiB to a"})
    account = judged(evidence)
    assert (account.overcommit_bytes, account.exit_status) == (3 << 20, 1)
    assert account.problems[0] == "3 MiB more were promised on V-0 than were there: 5 MiB to a"


def test_jobs_that_are_done_without_a_promise_that_was_seen_are_a_problem(evidence):
    evidence.watch = WatchReport(looks=10)
    account = judged(evidence)
    assert account.exit_status == 1
    assert account.problems[0].startswith("4 jobs are done, and nobody has seen a promise")


def test_touching_less_than_a_hundredth_of_what_was_charged_is_a_problem(evidence):
    evidence.step_runs[0].touched_bytes = 9
    account = judged(evidence)
    assert (account.bytes_charged, account.bytes_touched, account.exit_status) == (4000, 39, 1)


def test_what_jobs_on_the_cpu_wrote_doesn_t_count_as_touched(evidence):
    evidence.step_runs.append(StepRun(HONEST, 3, 0, 10_000))
    evidence.journal = {**evidence.journal, HONEST: JournalEntry("done", ("failed", "done"))}
    assert judged(evidence).bytes_touched == 40


def test_kills_are_counted(evidence):
    evidence.kills = [Kill(11, (HONEST,)), Kill(12, (SLY, HONEST))]
    assert judged(evidence).worker_kills == 2


def test_only_the_first_of_many_problems_of_a_kind_are_named(evidence):
    jobs = make_workload(20, capacity=8 * GIB, under_estimate=0.0, seed=0)
    account = judge(jobs, Evidence(), virtual=True, seed=0)
    assert account.lost == 20
    assert len(account.problems) == 6
    assert account.problems[-1] == "lost: 15 more"
