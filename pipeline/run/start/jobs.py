"""Which job a recipe is for; the one place where it is chosen."""

from __future__ import annotations

from paredown.pipeline.run.job import Job, Settings, kind_of


def make_job(settings: Settings) -> Job:
    """The job of a recipe.

    Raises:
        UsageError: recipe and target do not fit each other, or a key is set that this job does not read.
        InputError: a file of the recipe is missing or broken.
    """
    if kind_of(settings.recipe) == "language":
        from paredown.pipeline.run.language.job import LanguageJob

        return LanguageJob(settings)
    from paredown.pipeline.run.image.job import ImageJob

    return ImageJob(settings)
