"""Virtual device memory: counted to the byte, between processes, whoever is killed whenever."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memcore import OutOfDeviceMemoryError
from pools import VirtualDeviceMemory
from pools import process as process_module
from pools.charge_table import ROW
from pools.process import ProcessId, this_process

CAPACITY = 1000


@pytest.fixture
def device(tmp_path: Path) -> Iterator[VirtualDeviceMemory]:
    memory = VirtualDeviceMemory(tmp_path / "device", CAPACITY)
    yield memory
    memory.unlink()


def child(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
import sys
from pools import VirtualDeviceMemory
from pools import process as process_module
charge = VirtualDeviceMemory(sys.argv[1]).charge(int(sys.argv[2]), owner="child")
print("charged", flush=True)
sys.stdin.readline()
"""


def test_capacity_holds_to_the_byte(device: VirtualDeviceMemory) -> None:
    first = device.charge(CAPACITY - 1, owner="hog")
    device.charge(1)
    with pytest.raises(OutOfDeviceMemoryError) as caught:
        device.charge(1)
    error = caught.value
    assert (error.requested, error.free, error.capacity) == (1, 0, CAPACITY)
    first.release()
    assert (device.used(), device.free()) == (1, CAPACITY - 1)
    assert isinstance(pickle.loads(pickle.dumps(error)), MemoryError)


def test_a_request_beyond_the_whole_device(device: VirtualDeviceMemory) -> None:
    with pytest.raises(OutOfDeviceMemoryError, match="1001 bytes"):
        device.charge(CAPACITY + 1)
    with pytest.raises(ValueError, match="-1"):
        device.charge(-1)


def test_a_charge_is_released_once(device: VirtualDeviceMemory) -> None:
    with device.charge(10) as charge:
        assert device.used() == 10
    with pytest.raises(ValueError, match="released already"):
        charge.release()
    device.charge(20)  # the row is taken again, by another charge
    with pytest.raises(ValueError, match="released already"):
        charge.release()
    assert device.used() == 20


def test_charges_say_who_holds_what(device: VirtualDeviceMemory) -> None:
    device.charge(10, owner="job A")
    device.charge(20, owner="jöb B" + "x" * 100)
    first, second = device.charges()
    assert (first.process, first.nbytes, first.owner) == (this_process(), 10, "job A")
    assert second.owner.startswith("jöb B")
    assert device.used_by(os.getpid()) == 30
    assert device.used_by(1) == 0


def test_more_charges_than_the_file_had_rows_for(device: VirtualDeviceMemory) -> None:
    other = VirtualDeviceMemory(device.path)
    charges = [device.charge(0) for _ in range(600)] + [other.charge(1) for _ in range(600)]
    assert device.used() == other.used() == 600
    for charge in charges:
        charge.release()
    assert device.charges() == []


def test_the_same_device_by_name() -> None:
    name = f"test-{os.getpid()}"
    one = VirtualDeviceMemory(name, "1GiB")
    try:
        one.charge(5)
        assert VirtualDeviceMemory(name).used() == 5
        assert pickle.loads(pickle.dumps(one)).capacity == 1 << 30
        with pytest.raises(ValueError, match="capacity of 1073741824 bytes, not 2147483648"):
            VirtualDeviceMemory(name, "2GiB")
    finally:
        one.unlink()
    with pytest.raises(FileNotFoundError):
        VirtualDeviceMemory(name)


def test_after_unlinking_a_new_device_starts_empty(tmp_path: Path) -> None:
    old = VirtualDeviceMemory(tmp_path / "device", 10)
    old.charge(4)
    old.unlink()
    new = VirtualDeviceMemory(tmp_path / "device", 20)
    assert (new.used(), old.used()) == (0, 4)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("x" * 5000)
    with pytest.raises(ValueError, match="no table of charges"):
        VirtualDeviceMemory(tmp_path / "notes", 10)


def test_processes_share_a_device_and_the_killed_are_reaped(device: VirtualDeviceMemory) -> None:
    with child(HOLD, device.path, 700) as process:
        assert process.stdout.readline() == "charged\n"
        assert device.used() == 700
        with pytest.raises(OutOfDeviceMemoryError):
            device.charge(301)
        process.kill()
        # not waited for: a zombie has a pid and a start time, but no memory
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        device.charge(CAPACITY).release()
        assert device.charges() == []


def test_a_process_that_ends_without_releasing_is_reaped(device: VirtualDeviceMemory) -> None:
    with child(HOLD, device.path, 700) as process:
        process.communicate("\n")
    assert device.used() == 0


def test_a_reused_pid_is_another_process(device: VirtualDeviceMemory) -> None:
    device.charge(300)
    rows = np.memmap(device.path, ROW, "r+", offset=128, shape=(1,))
    rows["started"] -= 1
    assert device.used() == 0


def test_processes_of_another_pid_namespace_are_not_judged() -> None:
    me = this_process()
    assert not me.is_dead()
    assert ProcessId(me.pid, me.started - 1, me.namespace).is_dead()
    assert not ProcessId(me.pid, me.started - 1, me.namespace + 1).is_dead()


def test_threads_and_objects_of_one_process(device: VirtualDeviceMemory) -> None:
    def churn() -> None:
        mine = VirtualDeviceMemory(device.path)
        for _ in range(200):
            with mine.charge(CAPACITY // 4):
                pass

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device.used() == 0


FORK = """
import os, sys
from pools import VirtualDeviceMemory
from pools import process as process_module
memory = VirtualDeviceMemory(sys.argv[1])
mine = memory.charge(100, owner="parent")
child = os.fork()
if child == 0:
    memory.charge(200, owner="child")
    try:
        mine.release()
    except ValueError as error:
        print(error, [(charge.owner, charge.nbytes) for charge in memory.charges()], flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(memory.used())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_charges_for_itself(device: VirtualDeviceMemory) -> None:
    with child(FORK, device.path) as process:
        said, left = process.communicate(timeout=60)[0].splitlines()
    assert said.startswith("the charge belongs to process")
    assert said.endswith("[('parent', 100), ('child', 200)]")
    assert left == "100"


EVERY_INSTRUCTION = """
import os, signal, sys
from pools import VirtualDeviceMemory
from pools import process as process_module

path, capacity = sys.argv[1], int(sys.argv[2])
INSIDE = ("virtual.py", "charge_table.py", "process.py")

def use(fresh):
    memory = VirtualDeviceMemory(fresh, capacity)
    charges = [memory.charge(1) for _ in range(2)]
    memory.used()
    charges[0].release()

def child(kill_at, path):
    count = 0
    def trace(frame, event, argument):
        nonlocal count
        if os.path.basename(frame.f_code.co_filename) not in INSIDE:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    use(path)
    sys.settrace(None)
    os._exit(0)

kills, at = 0, 1
while True:
    # every other victim makes the file, too
    victim = path if at % 2 else f"{path}-{at}"
    pid = os.fork()
    if pid == 0:
        child(at, victim)
    status = os.waitpid(pid, 0)[1]
    memory = VirtualDeviceMemory(victim, capacity)
    memory.charge(capacity).release()
    assert memory.used() == 0, (at, memory.charges())
    if victim != path:
        memory.unlink()
    if os.waitstatus_to_exitcode(status) == 0:
        break
    kills += 1
    at += 1 + kills // 150  # every instruction at first, then some
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_instruction(tmp_path: Path) -> None:
    """A child is killed before its nth bytecode instruction in the table's code, for n after n."""
    with child(EVERY_INSTRUCTION, tmp_path / "device", CAPACITY) as process:
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert int(output) > 200


CONTEND = """
import sys
from memcore import OutOfDeviceMemoryError
from pools import VirtualDeviceMemory
from pools import process as process_module
memory = VirtualDeviceMemory(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
taken = most = 0
for _ in range(3000):
    try:
        charge = memory.charge(600)
    except OutOfDeviceMemoryError:
        continue
    taken += 1
    most = max(most, memory.used())
    charge.release()
print(taken, most)
"""


def test_processes_that_contend_never_overcommit(device: VirtualDeviceMemory) -> None:
    contenders = [child(CONTEND, device.path) for _ in range(3)]
    for contender in contenders:
        assert contender.stdout.readline() == "ready\n"
    for contender in contenders:
        contender.stdin.write("go\n")
        contender.stdin.flush()
    found = [tuple(map(int, contender.communicate(timeout=60)[0].split())) for contender in contenders]
    assert sum(taken for taken, _ in found) > 0  # one that is never lucky is fine
    assert max(most for _, most in found) == 600
    assert device.used() == 0


HAMMER = """
import sys
from pools import VirtualDeviceMemory
from pools import process as process_module
memory = VirtualDeviceMemory(sys.argv[1])
print("ready", flush=True)
held = []
for turn in range(10**9):
    held.append(memory.charge(turn % 7))
    if len(held) > 40:
        held.pop(0).release()
"""


def test_killed_by_others_while_several_hammer(device: VirtualDeviceMemory) -> None:
    for _ in range(5):
        victims = [child(HAMMER, device.path) for _ in range(2)]
        for victim in victims:
            assert victim.stdout.readline() == "ready\n"
        for _ in range(50):
            with device.charge(CAPACITY // 4):
                pass
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
        assert device.used() == 0
        device.charge(CAPACITY).release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_another_thread_charged_can_charge(tmp_path: Path) -> None:
    memory = VirtualDeviceMemory(tmp_path / "device", 1000)
    with memory._table.locked():
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)  # deadlocked, it would never end
            memory.charge(1)
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_process_that_was_seen_alive_is_dead_once_it_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        seen = ProcessId(child.pid, process_module._started(child.pid), this_process().namespace)
        assert not seen.is_dead()
        assert not seen.is_dead()
        before = len(os.listdir("/proc/self/fd"))
        child.kill()
        # not waited for: a zombie is as dead
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert seen.is_dead()
        assert len(os.listdir("/proc/self/fd")) < before, "its descriptor was kept"
    assert seen.is_dead()


def test_descriptors_of_processes_that_nobody_asks_for_again_are_given_back(monkeypatch) -> None:
    monkeypatch.setattr(process_module, "_seen", {})
    monkeypatch.setattr(process_module, "MOST_SEEN", 2)
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            started = process_module._started(child.pid)
            assert not ProcessId(child.pid, started, this_process().namespace).is_dead()
            child.kill()
    assert len(process_module._seen) <= 2


def test_a_process_is_judged_where_there_are_no_descriptors_of_processes(monkeypatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(process_module, "_seen", {})
    parent = ProcessId(os.getppid(), process_module._started(os.getppid()), this_process().namespace)
    assert not parent.is_dead()
    assert ProcessId(parent.pid, (parent.started or 0) - 1, parent.namespace).is_dead()
