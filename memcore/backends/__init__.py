"""One class for each array framework."""
