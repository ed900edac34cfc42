"""One process that reserves, allocates and gives back at random.

Run as a module by the tests, killed by them too.
"""

import random
import sys
from pathlib import Path

from pools.virtual import VirtualDeviceMemory
from scheduler.host.reading import Reading
from scheduler.host.reservations import Grant, Reservations

DEVICES = 2


def main(table: str, device_names: str, seed: str, events: str) -> None:
    """Prints a line for every hundred events, and "overcommit N" if memory that was promised wasn't there."""
    choose = random.Random(int(seed))
    memories = {name: VirtualDeviceMemory(name) for name in device_names.split(",")}
    held = dict.fromkeys(memories, 0)
    live = []

    def read(uuid: str) -> Reading:
        return Reading(uuid, memories[uuid].capacity, memories[uuid].used())

    with Reservations(Path(table), run=f"run{int(seed) % 2}") as reservations:
        for event in range(int(events)):
            if live and choose.random() < 0.5:
                grant, charges = live.pop(choose.randrange(len(live)))
                for name, charge in charges:
                    charge.release()
                    held[name] -= charge.nbytes
                    reservations.measure(name, held[name], 0)
                reservations.release(grant)
            else:
                names = choose.sample(sorted(memories), choose.randint(1, DEVICES))
                needs = {name: choose.randrange(memories[name].capacity // 3) for name in names}
                grant = reservations.reserve(f"job{event}", needs, read=read)
                if isinstance(grant, Grant):
                    charges = []
                    for name, nbytes in needs.items():
                        try:
                            charges.append((name, memories[name].charge(nbytes, owner=f"{seed}")))
                        except MemoryError:
                            print(f"overcommit {nbytes}", flush=True)
                        else:
                            held[name] += nbytes
                            reservations.measure(name, held[name], 0)
                    live.append((grant, charges))
            if event % 100 == 99:
                print("events 100", flush=True)
        for grant, charges in live:
            for _, charge in charges:
                charge.release()
            reservations.release(grant)
    print("end", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
