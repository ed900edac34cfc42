"""What keeps a run from its cluster."""


class ClusterError(RuntimeError):
    """The Dask cluster can't be used; the message says what it lacks."""
