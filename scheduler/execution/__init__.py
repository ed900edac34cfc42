"""Running jobs on Dask: clusters, the worker's side, the driver, the journal."""
