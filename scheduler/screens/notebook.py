"""A run while it goes on, in the output of a notebook's cell."""

import io
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.text import Text

from scheduler.execution.status import RunStatus
from scheduler.screens.progress import draw_status

WIDTH = 110
PAGE = '<pre style="line-height:1.2;font-family:Menlo,\'DejaVu Sans Mono\',consolas,monospace">{code}</pre>'


class NotebookProgress:
    """Redraws one view in place, and leaves the last one behind.

    By IPython's own display: Rich's live view would need `ipywidgets`, and draw nothing without it.
    """

    def __init__(self) -> None:
        self._status: RunStatus | None = None
        self._remark = "starting"
        self._view: Any = None

    def __enter__(self) -> Self:
        from IPython.display import display

        self._view = display(self._page(), display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.update(self._page())

    def update(self, status: RunStatus) -> None:
        """Draw `status`."""
        if self._remark == "starting":
            self._remark = ""
        self._status = status
        self._view.update(self._page())

    def say(self, what: str) -> None:
        """Draw `what` under the view from the next update on."""
        self._remark = what

    def _page(self) -> Any:
        from IPython.display import HTML

        console = Console(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False)
        if self._status is not None:
            console.print(draw_status(self._status))
        if self._remark:
            console.print(Text(self._remark, style="yellow"))
        return HTML(console.export_html(inline_styles=True, code_format=PAGE))
