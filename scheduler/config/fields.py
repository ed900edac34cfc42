"""The kinds of values that a config's sections are made of."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, Strict
from pydantic_core import PydanticCustomError


def problem(what: str, *, at: str = "") -> PydanticCustomError:
    """An error for a validator to raise; `at` is the key that is wrong, where the validator sees several."""
    return PydanticCustomError("config", "{what}", {"what": what, "at": at})


def _size(value: Any) -> Any:
    if isinstance(value, bool | float):
        raise problem("expected a size such as 512MiB or 1.5GiB, or whole bytes")
    if isinstance(value, str) and not re.fullmatch(r"\s*\d*\.?\d+\s*([kmgtp]i?)?b\s*", value, re.IGNORECASE):
        raise problem("expected a size such as 512MiB or 1.5GiB, or whole bytes")
    if isinstance(value, int) and value < 0:
        raise problem("a size can't be negative")
    return value


StrictInt = Annotated[int, Strict()]
NotNegative = Annotated[StrictInt, Field(ge=0)]
Positive = Annotated[StrictInt, Field(ge=1)]
StrictBool = Annotated[bool, Strict()]
ByteCount = Annotated[ByteSize, BeforeValidator(_size)]


class Section(BaseModel):
    """A section of the config: frozen, and it refuses keys that it doesn't know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True, validate_by_alias=True
    )
