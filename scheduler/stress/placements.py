"""Which file is behind each result's name, and whether another one came into its place."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file is: another inode, time of writing or size is another effect."""

    inode: int
    written_ns: int
    nbytes: int

    @classmethod
    def of(cls, path: Path) -> "Identity | None":
        """The file's; None if there is none."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


class Placements:
    """Looks at the folders of results again and again.

    `replaced` names those whose file was replaced by another one before its job had ended: the work of a job
    that was cut short after it had put its result in place, done anew.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)
        self._inodes: dict[Path, int] = {}
        self._told: dict[Path, Identity | None] = {}
        self.replaced: set[Path] = set()

    def look(self) -> None:
        """See which files are there now."""
        for folder in self._folders:
            for entry in os.scandir(folder):
                if not entry.name.startswith("."):
                    path = folder / entry.name
                    inode = entry.inode()
                    if self._inodes.setdefault(path, inode) != inode:
                        self._inodes[path] = inode
                        self.replaced.add(path)

    def told(self, path: Path) -> None:
        """The job of this result has been reported as done: from now on nothing may happen to it."""
        self._told[path] = Identity.of(path)

    def changed(self) -> set[Path]:
        """Results that aren't any more what they were when their job was reported as done, or are gone."""
        return {path for path, then in self._told.items() if Identity.of(path) != then}

    def missing(self) -> set[Path]:
        """Results that weren't there when their job was reported as done, or aren't there now."""
        return {path for path, then in self._told.items() if then is None or not path.exists()}
