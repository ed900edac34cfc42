"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL_PREFIX = ".stackyard-"
PARTIAL_SUFFIX = ".part"


@contextlib.contextmanager
def atomic_file(path: Path, *, overwrite: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file, open for writing and reading, that becomes `path` when the block ends without an error.

    It has a temporary name in the same folder, is flushed to the disk if `durable`, and renamed. It is
    created as any file is, so that umask and a folder's setgid hold (tempfile's are 0600). A link at `path`
    is replaced, not followed. The folder must exist.

    Raises
    ------
    FileExistsError
        There is something at `path`, before the block or at its end, and `overwrite` is False.
    OSError
        As the system says: no permission, disk full, name too long. Nothing is left behind.
    """
    refuse_existing(path, overwrite=overwrite)
    partial = partial_path(path)
    with contextlib.ExitStack() as undo:
        # not "w+b": O_EXCL, for the name must be ours alone
        file = undo.enter_context(open(partial, "x+b"))
        undo.callback(partial.unlink, missing_ok=True)
        yield file
        file.flush()
        if durable:
            os.fsync(file.fileno())
        _place(partial, path, overwrite=overwrite)
    if durable:
        sync_folder(path.parent)


def _place(partial: Path, path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        try:
            # unlike a rename this fails if somebody else's file has come meanwhile
            os.link(partial, path)
        except FileExistsError:
            refuse_existing(path, overwrite=False)
            raise
        except OSError:
            # no hard links here: FAT, some network shares
            refuse_existing(path, overwrite=False)
        else:
            return
    os.replace(partial, path)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """FileExistsError if anything is at `path`, even a dangling link, and it isn't to be overwritten."""
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists already; overwriting must be asked for (--overwrite)")


def partial_path(path: Path) -> Path:
    """A hidden name beside `path`, short however long that is, which no pattern of find_stacks matches."""
    return path.parent / f"{PARTIAL_PREFIX}{os.getpid()}-{secrets.token_hex(8)}{PARTIAL_SUFFIX}"


def remove_partials(folders: Iterable[Path], pids: Iterable[int]) -> None:
    """Remove what processes that were ended in the middle of a write have left in these folders themselves.

    The processes must be gone: an unfinished file or OME-Zarr of a living one would vanish under its hands.
    """
    left = tuple(f"{PARTIAL_PREFIX}{pid}-" for pid in pids)
    for folder in folders:
        for path in folder.glob(f"{PARTIAL_PREFIX}*{PARTIAL_SUFFIX}"):
            if not path.name.startswith(left):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a rename to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
