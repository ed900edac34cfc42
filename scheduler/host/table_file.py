"""Where the reservation table lies, who may open it, and the lock around it."""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
NAME = "reservations.sqlite"
LOCKS = Path("/proc/locks")
# Names another folder for the table: of this user alone, or one that a group of users shares.
FOLDER_VARIABLE = "STACKYARD_RESERVATIONS"


def default_path() -> Path:
    """This user's table on this host: in shared memory where there is any, else in the temporary folder.

    STACKYARD_RESERVATIONS names another folder, which has to be the same for every run of the host: one that
    a group of users shares, or one of this user's own, made if need be.

    Raises
    ------
    PermissionError
        The folder that is named is neither; the message says how to make it fit.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return _named_path(Path(named))
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    return folder / f"stackyard-{os.getuid()}" / NAME


def _named_path(folder: Path) -> Path:
    if folder.is_dir():
        found = folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return group_path(folder)
    return folder / NAME


def group_path(folder: Path) -> Path:
    """The table in a folder that a group of users shares.

    Raises
    ------
    PermissionError
        The folder isn't there, isn't ours to write, can be written by strangers, or doesn't hand on its
        group.
    """
    remedy = f"make it with: mkdir {folder}; chgrp GROUP {folder}; chmod 2770 {folder}"
    if not folder.is_dir():
        raise PermissionError(f"{folder} is no folder; {remedy}")
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH:
        raise PermissionError(f"{folder} can be written by everybody (mode {mode & 0o7777:o}); {remedy}")
    if not mode & stat.S_IWGRP or not mode & stat.S_ISGID:
        raise PermissionError(f"{folder} doesn't belong to its group (mode {mode & 0o7777:o}); {remedy}")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(f"this user may not write in {folder}; {remedy}")
    return folder / NAME


class TableFile:
    """The file, opened with permissions that fit its folder, and an `fcntl.flock` beside it.

    In a folder of a group the file is the group's; elsewhere it is this user's alone, and a file or folder
    there that belongs to somebody else is refused: in a folder that everybody may write, it could be a trap.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, exist_ok=True)
        folder = path.parent.lstat()
        shared = bool(folder.st_mode & stat.S_IWGRP and folder.st_mode & stat.S_ISGID)
        mode = 0o660 if shared else 0o600
        if not shared and folder.st_uid != os.getuid():
            raise PermissionError(f"{path.parent} belongs to user {folder.st_uid}, not to {os.getuid()}")
        for name in (path, self._lock_path):
            self._make(name, mode, shared)
        self._fd = os.open(self._lock_path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    @property
    def _lock_path(self) -> Path:
        return self.path.with_suffix(".lock")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; it ends with the process. One thread at a time: threads of a process share it."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def holder(self) -> int | None:
        """The process that holds the lock, by its id; None if nobody does, or the kernel doesn't tell."""
        try:
            locks = LOCKS.read_text().splitlines()
        except OSError:  # not Linux
            return None
        inode = os.fstat(self._fd).st_ino
        for line in locks:
            # "1: FLOCK  ADVISORY  WRITE 4511 00:1b:15 0 EOF"; who waits has "->" after the number (proc(5))
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                return int(words[4])
        return None

    def close(self) -> None:
        """Let go of the lock file."""
        os.close(self._fd)

    @staticmethod
    def _make(path: Path, mode: int, shared: bool) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        except FileExistsError:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                raise PermissionError(f"{path} is not a plain file") from None
            if not shared and (found.st_uid != os.getuid() or found.st_mode & 0o077):
                raise PermissionError(
                    f"{path} belongs to user {found.st_uid} with mode {found.st_mode & 0o7777:o}; "
                    f"expected user {os.getuid()} and mode 600"
                ) from None
            return
        # umask may have taken bits that a group needs
        os.fchmod(fd, mode)
        os.close(fd)
