"""The built-in steps, one file each."""
