"""One number that is counted."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """One number to add to, or to read where `amount` is 0.

    key: which limit of whom. window: its number; a new one begins at zero. seconds: how long a
    window is.
    """

    key: str
    window: int
    amount: int
    seconds: int
