"""The base of every typed config: immutable, and an unknown key is an error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys; field descriptions are the only documentation of a field."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
