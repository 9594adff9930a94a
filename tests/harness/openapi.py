"""Check requests and responses against the OpenAPI document."""

from typing import Any

from jsonschema import Draft202012Validator

from bot.server.openapi import document

DOCUMENT = document()


def operation(path: str, method: str = "post") -> dict[str, Any]:
    """Return what the document says of an operation."""
    found: dict[str, Any] = DOCUMENT["paths"][path][method]
    return found


def examples(path: str) -> list[Any]:
    """Return the example bodies of a path."""
    content = operation(path)["requestBody"]["content"]["application/json"]
    return [content["example"]] if "example" in content else [each["value"] for each in content["examples"].values()]


def check(schema: dict[str, Any], value: object) -> None:
    """Raise jsonschema.ValidationError if the value is not of this schema."""
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def check_response(path: str, status: int, value: object, method: str = "post") -> None:
    """Raise KeyError or ValidationError if the document does not know such a response."""
    check(operation(path, method)["responses"][str(status)]["content"]["application/json"]["schema"], value)
