"""What jobs need and how long they take: the declared model, corrected by what was measured."""


class Estimates:
    """Learned peaks and durations."""

    def to_json(self) -> dict[str, object]:
        """Everything learned, as plain JSON types."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, record: dict[str, object]) -> "Estimates":
        """The inverse of `to_json`."""
        raise NotImplementedError
