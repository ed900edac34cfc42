"""The part that decides: pure functions and records, with no clock, I/O, randomness or Dask."""
