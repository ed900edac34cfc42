"""One self-contained HTML page about a run, from its journal."""
