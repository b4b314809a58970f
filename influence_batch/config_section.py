"""What the sections of the config have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A mapping of known keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def no_truth_value(value: Any) -> Any:
    """Pydantic would take `l2: true` for 1.0."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth_value", "a truth value is no number")
    return value


Int = Annotated[int, BeforeValidator(no_truth_value)]
Float = Annotated[float, BeforeValidator(no_truth_value)]
