"""What is wrong with a config file, and where."""

from dataclasses import dataclass

MOST_SHOWN = 20


@dataclass(frozen=True, slots=True, order=True)
class ConfigProblem:
    """One thing wrong in a config file. `line` and `column` count from 1; 0 means the file as a whole."""

    file: str
    line: int
    column: int
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.what}"


class ConfigError(ValueError):
    """A config file can't be used; prints a line for each of the first 20 `problems`, in the file's order."""

    def __init__(self, *problems: ConfigProblem) -> None:
        super().__init__(*problems)
        self.problems = tuple(sorted(problems))

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:MOST_SHOWN]]
        more = len(self.problems) - len(lines)
        return "\n".join([*lines, *[f"and {more:,} more"] * bool(more)])
