"""Figures, names and paths as people read them. Bytes are `memcore.info.bytes_text`."""

from pathlib import Path


def duration_text(seconds: float) -> str:
    """ "0.4 s", "41 s", "3 min 20 s", "2 h 05 min"; whole seconds from ten on."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def rate_text(per_s: float) -> str:
    """ "8.2 jobs/s", or by the minute or the hour where less than one job is done in a second."""
    if per_s >= 1:
        return f"{per_s:.1f} jobs/s"
    if per_s * 60 >= 1:
        return f"{per_s * 60:.1f} jobs/min"
    return f"{per_s * 3600:.1f} jobs/h"


def count_text(number: int, what: str) -> str:
    """ "1 job", "2 jobs"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def path_text(path: str | Path) -> str:
    """A path as a person would type it here: relative where it lies below the working directory."""
    path = Path(path)
    here = Path.cwd()
    return printable(str(path.relative_to(here) if path.is_relative_to(here) else path))


def printable(text: str) -> str:
    """`text` with what could drive a terminal written out: file names may hold any byte but NUL and `/`."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
