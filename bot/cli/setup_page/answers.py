"""What the page sends: the answers so far."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

Platform = Literal["discord", "telegram", "slack"]
Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=4_000)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class NoAnswer(_Answer):
    """An empty object."""


class TokenAnswer(_Answer):
    """The tokens of a platform, to be checked."""

    platform: Platform
    tokens: dict[Line, Line]


class ModelAnswer(_Answer):
    """The model: the demo, a `name` at the server `url`, a folder, or a model of the hub."""

    way: Literal["demo", "server", "folder", "hub"] = "demo"
    name: Line = ""
    url: Line = ""
    key: SecretStr = SecretStr("")
    quantization: Literal["auto", "none", "int8", "int4"] = "auto"


class SetupAnswers(_Answer):
    """All answers; `unchecked` are the platforms, or "model", that are wanted although they could not be reached."""

    platforms: dict[Platform, dict[Line, Line]] = Field(default_factory=dict)
    model: ModelAnswer = ModelAnswer()
    language: Literal["auto", "en", "zh"] = "auto"
    unchecked: frozenset[Line] = frozenset()
    replaces: bool = False
