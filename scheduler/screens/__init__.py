"""What people see: the command line, progress and reports."""
