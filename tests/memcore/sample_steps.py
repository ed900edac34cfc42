"""Steps that tests pickle by name."""

from __future__ import annotations

from typing import Any

from memcore import memory_types


@memory_types(["numpy", "cupy"], splittable="z", halo=(1, 2, 2), workspace=7)
def add(stack: Any, *, amount: int = 1) -> Any:
    """Add a number."""
    return stack + amount


@add.register("torch", splittable=None)
def add_torch(stack: Any, *, amount: int = 1) -> Any:
    return stack + amount


@memory_types("torch", output="numpy")
def fetch(stack: Any) -> Any:
    return stack.numpy()
