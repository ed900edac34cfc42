"""`python -m scheduler.screens` is the `stackyard` command."""

from scheduler.screens.cli import main

if __name__ == "__main__":
    main()
