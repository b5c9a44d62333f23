"""The base of every typed config: immutable, and an unknown key is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, field_validator

# A setting that is one value or, to say more, a mapping, is annotated
# `Annotated[Annotated[float, PLAIN] | Annotated[Settings, MAPPING], EITHER]`; messages leave the tags out of paths.
_TAGS = ("<plain>", "<mapping>")
PLAIN, MAPPING = Tag(_TAGS[0]), Tag(_TAGS[1])
EITHER = Discriminator(lambda value: _TAGS[isinstance(value, Mapping | BaseModel)])


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys; field descriptions are the only documentation of a field."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("targets", "ignore", check_fields=False)
    @classmethod
    def _check_patterns(cls, given: list[str] | None) -> list[str] | None:
        """Refuse a pattern that is no regular expression while a recipe is read, before a model is."""
        for pattern in given or ():
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"{pattern!r} is not a valid regular expression: {error}") from error
        return given
