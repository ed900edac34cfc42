"""What is wrong with a step's description."""


class StepError(ValueError):
    """A step that can't be found, imported or called as described; the message says what would do."""
