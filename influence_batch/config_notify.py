"""The section `notify` of the config: whom to tell how a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class NotifyConfig(BaseModel):
    """A webhook. No secret needs to stand in it: `${NAME}` is read from the environment when it is used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        pattern=r"^(https?://\S+|\$\{\w+\}\S*)$",
        description="an http or https URL, or ${NAME} for an environment variable that has it",
    )
    on: Annotated[
        tuple[Literal["gate", "failure", "recovery"], ...], BeforeValidator(_as_list), Field(min_length=1)
    ] = Field(("gate", "failure", "recovery"), description="a list of gate, failure, recovery")
    headers: dict[str, str] = Field(
        {},
        description="a mapping of header names to texts, with ${NAME} for an environment variable",
    )

    @model_validator(mode="before")
    @classmethod
    def _on_is_no_truth_value(cls, value: Any) -> Any:
        """YAML 1.1 reads the key `on` as true."""
        if isinstance(value, Mapping) and "True" in value and "on" not in value:
            return {"on" if key == "True" else key: item for key, item in value.items()}
        return value
