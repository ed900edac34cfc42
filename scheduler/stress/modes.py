"""How other programs behave on the devices while a stress test runs."""

from enum import StrEnum


class HogMode(StrEnum):
    """`random` ones grow, stay a while and vanish; `steady` ones hold their share from begin to end."""

    NONE = "none"
    RANDOM = "random"
    STEADY = "steady"
