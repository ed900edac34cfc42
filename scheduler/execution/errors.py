"""What keeps a run from its cluster."""


class ClusterError(RuntimeError):
    """The Dask cluster can't be used; the message says what it lacks."""


MOST_SAID = 2000


def shortened(text: str) -> str:
    """`text` with its middle left out where it is too long for a reason: the job's log has the whole."""
    if len(text) <= MOST_SAID:
        return text
    half = MOST_SAID // 2
    return f"{text[:half]} … {text[-half:]} ({len(text):,} characters, of which the job's log has all)"
