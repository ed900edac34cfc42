"""Turns of the chain's contenders: each writes to a folder of its own, and its pixels must be the loop's."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from distributed.scheduler import KilledWorker

from benchmarks.chain_contenders import Contender, Pairs, different
from benchmarks.rows import seconds
from scheduler import JobFailedError


class Turns:
    """Gives each turn a folder of its own, and sees that its results are the right ones."""

    def __init__(self, folder: Path, sources: Sequence[Path], reference: Sequence[Path]) -> None:
        self._folder = folder
        self._sources = sources
        self._reference = reference
        self._count = 0
        self._left: list[tuple[Path, Pairs]] = []

    def of(self, contender: Contender) -> Callable[[], None]:
        """What runs one turn of a contender."""

        def turn() -> None:
            self._count += 1
            folder = self._folder / f"turn{self._count}"
            pairs = list(zip(self._sources, targets(folder, self._sources), strict=True))
            self._left.append((folder, pairs))
            contender.run(pairs)

        return turn

    def clear(self, *, check: bool = True) -> None:
        """Compare what was written, and remove it; raises AssertionError if a pixel differs."""
        for folder, pairs in self._left:
            wrong = different(pairs, self._reference) if check else []
            shutil.rmtree(folder)
            if wrong:
                raise AssertionError(f"other pixels than the loop's in {', '.join(wrong)}")
        self._left.clear()

    def to_the_end(self, contender: Contender) -> tuple[float | None, str]:
        """Run one turn that may fail; seconds until all results are right, or None, and the end in words."""
        began = perf_counter()
        try:
            self.of(contender)()
        except (KilledWorker, MemoryError, JobFailedError) as error:
            self.clear(check=False)
            return None, f"{type(error).__name__} after {seconds(perf_counter() - began)}"
        took = perf_counter() - began
        self.clear()
        return took, f"done in {seconds(took)}, same pixels"


def targets(folder: Path, sources: Sequence[Path]) -> list[Path]:
    """Where the results go, one for each source, in a new folder."""
    folder.mkdir()
    return [folder / f"{source.stem}.ome.tif" for source in sources]
