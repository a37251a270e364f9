"""Whether a program fits into a microcontroller, asked before anything is deployed."""

from __future__ import annotations

from paredown.targets.cards.card import Target
from paredown.targets.errors import DeviceError, UsageError


def fits(card: Target, sram_bytes: int, flash_bytes: int) -> None:
    """Checks a program's needs against the memories on a card.

    Args:
        card: of a microcontroller.
        sram_bytes: that an inference needs: LiteRT Micro's arena, or Vela's SRAM.
        flash_bytes: of the program.

    Raises:
        DeviceError: it does not fit; the line says where, and by how much.
        UsageError: the card is of no microcontroller.
    """
    if card.microcontroller is None:
        raise UsageError(f"target {card.name} is no microcontroller", hint="its memory is not counted in KiB")
    sizes = card.microcontroller
    needs = (("SRAM", sram_bytes, sizes.sram_kib), ("flash", flash_bytes, sizes.flash_kib))
    lacks = [
        f"needs {kib(need)} of {memory}, {kib(need - 1024 * there)} more than the {there:,} KiB there are"
        for memory, need, there in needs
        if need > 1024 * there
    ]
    if lacks:
        raise DeviceError(
            "does not fit: " + "; ".join(lacks), where=f"target {card.name} ({sizes.board})",
            hint="prune channels, take a smaller input, or a card with your board's memory",
        )  # fmt: skip


def kib(size: int) -> str:
    """A number of bytes in KiB, rounded up to a tenth: what is too much by a byte is not too much by 0.0."""
    return f"{-(-size * 10 // 1024) / 10:,.1f} KiB"
