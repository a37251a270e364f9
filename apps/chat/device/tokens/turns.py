"""The turns of a chat: what stands between its texts. Made of a model's chat template when it is bundled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: A token by its number, or text.
Part = int | str
_PARTS = ("start", "lead", "ask", "end")


@dataclass(frozen=True)
class Turns:
    """A chat is `start`, then each exchange, with `end` between two.

    An exchange is `lead`, the user's text, `ask`, and the model's answer.

    Attributes:
        start: what a chat begins with.
        lead: in front of the user's text.
        ask: behind it, up to where the model's answer begins.
        end: behind an answer, where the chat goes on.
        strip: whether the white space around the user's text is taken off.
    """

    start: tuple[Part, ...]
    lead: tuple[Part, ...]
    ask: tuple[Part, ...]
    end: tuple[Part, ...]
    strip: bool

    @property
    def ends(self) -> tuple[int, ...]:
        """The token that ends an answer, if one does."""
        return tuple(part for part in self.end[:1] if isinstance(part, int))

    @property
    def stop(self) -> str:
        """The text at which an answer ends; "" where a token ends it."""
        text = self.end[0] if self.end and isinstance(self.end[0], str) else ""
        return next(iter(text.strip().splitlines()), "")

    def as_json(self) -> dict[str, Any]:
        """For a bundle's app.json."""
        return {key: list(value) if key in _PARTS else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Turns:
        """What `as_json` made.

        Raises:
            KeyError, TypeError, ValueError: it is nothing of the kind.
        """
        parts = {key: tuple(table[key]) for key in _PARTS}
        if not all(type(part) in (int, str) for each in parts.values() for part in each):
            raise ValueError("a turn has tokens and text alone")
        if not isinstance(table["strip"], bool):
            raise ValueError("`strip` is true or false")
        return cls(strip=table["strip"], **parts)
