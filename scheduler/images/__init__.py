"""Image stacks in and out of files."""
