"""Buckets and the queue that finds what fits."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.queues import FitQueue, bucket_below, bucket_of
from scheduler.core.records import Group, Option
from tests.scheduler.core.build import on_gpu

SIZES = st.integers(0, 1 << 44)


def group(order, priority=0):
    return Group(order, f"k{order}", "f", (), priority)


def option(need, seconds=1.0):
    return Option(on_gpu(1), need, 0, seconds, True, 1.0)


@given(SIZES, SIZES)
def test_buckets_keep_order_and_bound_sizes(first, second):
    if first <= second:
        assert bucket_of(first) <= bucket_of(second)
    assert bucket_below(first) <= bucket_of(first) <= bucket_below(first) + 1


@given(st.lists(st.tuples(SIZES, st.integers(0, 2)), max_size=60), SIZES)
def test_the_first_candidate_fits_and_is_nearly_the_largest(entries, free):
    queue = FitQueue()
    for order, (need, priority) in enumerate(entries):
        queue.insert(group(order, priority), option(need), need)
    fitting = [(priority, need) for need, priority in entries if need <= free]
    found = next(queue.candidates(free), None)
    if not fitting:
        assert found is None
        return
    chosen, its_option = found
    best_priority = max(priority for priority, _ in fitting)
    assert chosen.priority == best_priority
    assert its_option.need <= free
    largest = max(need for priority, need in fitting if priority == best_priority)
    # a bucket is a 32nd of a power of two wide; needs below 1 MiB are all alike
    assert its_option.need >= largest - max(largest >> 4, 1 << 20)


def test_entries_of_moved_groups_are_dropped():
    queue = FitQueue()
    moved = group(1)
    queue.insert(moved, option(100 << 20), 100 << 20)
    moved.version += 1
    queue.insert(moved, option(300 << 20), 300 << 20)
    assert next(queue.candidates(200 << 20), None) is None
    assert next(queue.candidates(300 << 20))[1].need == 300 << 20


def test_the_longest_comes_first_among_equals():
    queue = FitQueue()
    for order, seconds in enumerate((1.0, 9.0, 3.0)):
        queue.insert(group(order), option(1 << 30, seconds), 1 << 30)
    assert next(queue.candidates(2 << 30))[1].seconds == 9.0
