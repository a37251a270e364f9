"""The chat app: Gemma 3 from trained weights to a conversation on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paredown.apps.chat.task import ChatTask
    from paredown.pipeline.recipe.schema import Recipe


def make_language_task(recipe: Recipe) -> ChatTask:
    """What the pipeline asks of this app; see `pipeline.recipe.language_task.LanguageTask`."""
    from paredown.apps.chat.task import ChatTask

    return ChatTask(recipe)
