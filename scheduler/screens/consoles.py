"""Where screens are drawn."""

from rich.console import Console

PIPE_WIDTH = 200


def output_console() -> Console:
    """Standard output: as wide as the terminal; wide enough for whole lines where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)
