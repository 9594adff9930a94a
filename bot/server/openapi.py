"""The OpenAPI document of all APIs: paths, fields and examples."""

from collections.abc import Mapping
from typing import Any

from bot import __version__

Schema = dict[str, Any]


def _string(about: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": about} if about else {}), **more}


def _integer(about: str = "", **more: Any) -> Schema:
    return {"type": "integer", **({"description": about} if about else {}), **more}


def _number(about: str, lowest: float, highest: float, default: float) -> Schema:
    return {"type": "number", "description": about, "minimum": lowest, "maximum": highest, "default": default}


def _list(items: Schema, about: str = "", **more: Any) -> Schema:
    return {"type": "array", "items": items, **({"description": about} if about else {}), **more}


def _object(properties: Mapping[str, Schema], *required: str, **more: Any) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": [*required], **more}


def _optional(schema: Schema) -> Schema:
    """Return the schema of a field that may be null, which counts as missing."""
    return {"anyOf": [schema, {"type": "null"}]}


_HISTORY = _list(_list(_string(), minItems=2, maxItems=2), "Earlier turns: question and answer.")
_SAMPLING = {
    "temperature": _optional(_number("0 is greedy decoding.", 0, 2, 0.95)),
    "top_p": _optional(_number("Of the likeliest tokens, the probability that is left.", 0, 1, 0.7)),
}
_USAGE = _object(
    {"prompt_tokens": _integer(), "completion_tokens": _integer(), "total_tokens": _integer()},
    "prompt_tokens",
    "total_tokens",
)
# True and false in any way that servers built on pydantic accept: 1, "yes".
_BOOLEAN: Schema = {"type": ["boolean", "integer", "string"], "default": False}
_TEXT_PART = _object({"type": _string(const="text"), "text": _string()}, "type", "text")
_IMAGE_PART = _object(
    {
        "type": _string(const="image_url"),
        "image_url": _object(
            {"url": _string("A data URL: PNG, JPEG, WebP or GIF.", pattern="^data:image/(png|jpeg|webp|gif);base64,")},
            "url",
        ),
    },
    *("type", "image_url"),
    description="Only for a model that sees pictures, and in a user's message.",
)
_REASON = _optional(_string(enum=["stop", "length"]))

SCHEMAS: dict[str, Schema] = {
    "Question": _object(
        {
            "prompt": _string("The question."),
            "history": _HISTORY,
            "max_length": _optional(_integer("Tokens of prompt and answer together; 2048 or 4096.", minimum=0)),
            **_SAMPLING,
            "stream": _optional({**_BOOLEAN, "description": "POST / only: events, each with all text so far."}),
        },
        "prompt",
    ),
    "Answer": _object(
        {
            "response": _string(),
            "history": _HISTORY,
            "status": _integer(const=200),
            "time": _string("Local time.", examples=["2023-03-14 12:00:00"]),
            "model": _string("The fallback that answered, if one did."),
        },
        *("response", "history", "status", "time"),
    ),
    "PollingQuestion": _object(
        {
            "request_id": {"type": ["string", "integer"], "description": "Chosen by the client; up to 256 characters."},
            "query": _string("The question."),
            "history": _HISTORY,
        },
        *("request_id", "query"),
    ),
    "PollingId": _object({"request_id": {"type": ["string", "integer"]}}, "request_id"),
    "PollingResult": _object(
        {
            "code": _integer("0 success, 100 busy, 101 known id, 102 unknown id, 103 wrong request.", minimum=0),
            "msg": _string(),
            "response": _object(
                {
                    "is_finished": {"type": "boolean"},
                    "is_handled": {"type": "boolean", "description": "Whether the answer has begun."},
                    "response": _string("The answer so far."),
                    "timestamp": {"type": "number", "description": "Unix time of the question."},
                    "model": _string("The fallback that answers, if one does."),
                    "error": _string("Why the answer ended early."),
                },
                *("is_finished", "is_handled", "response", "timestamp"),
            ),
        },
        *("code", "msg"),
    ),
    "GlmAnswer": _object(
        {
            "content": _string(),
            "model": _string(),
            "object": _string(const="chat.completion"),
            **_USAGE["properties"],
        },
        *("content", "model", "object", "prompt_tokens", "completion_tokens", "total_tokens"),
    ),
    "Text": _object({"prompt": _string(), "max_length": _optional(_integer("Most ids.", minimum=1))}),
    "Tokens": _object({"tokenIds": _list(_integer()), "tokens": _list(_string())}, "tokenIds", "tokens"),
    "Texts": _object({"prompt": {"anyOf": [_string(), _list(_string(), maxItems=2048)]}}),
    "Vectors": _object(
        {
            "data": {"anyOf": [_list({"type": "number"}), _list(_list({"type": "number"}))]},
            "model": _string(),
            "object": _string(const="embedding"),
        },
        *("data", "model", "object"),
    ),
    "Message": _object(
        {
            "role": _string(enum=["system", "developer", "user", "assistant"]),
            "name": _optional(_string("The speaker, whom the model reads before a user's text.")),
            "content": {
                "anyOf": [
                    _string(),
                    _list({"anyOf": [_TEXT_PART, _IMAGE_PART]}),
                    {"type": "null"},
                ]
            },
        },
        "role",
    ),
    "Generation": _object(
        {
            "model": _optional(_string("An id of /v1/models.")),
            **_SAMPLING,
            "top_k": _optional(_integer("0 or -1 for all tokens.", minimum=-1)),
            "max_tokens": _optional(_integer(minimum=1)),
            "max_completion_tokens": _optional(_integer(minimum=1)),
            "stop": {"anyOf": [_string(minLength=1), _list(_string(minLength=1), maxItems=4), {"type": "null"}]},
            "seed": _optional(_integer()),
            "n": _optional(_integer("Answers.", minimum=1, maximum=8)),
            "stream": _optional(_BOOLEAN),
            "stream_options": _optional(_object({"include_usage": _optional(_BOOLEAN)})),
        }
    ),
    "ChatQuestion": {
        "allOf": [
            {"$ref": "#/components/schemas/Generation"},
            _object({"messages": _list({"$ref": "#/components/schemas/Message"}, minItems=1)}, "messages"),
        ]
    },
    "TextQuestion": {
        "allOf": [{"$ref": "#/components/schemas/Generation"}, _object({"prompt": _string()}, "prompt")],
    },
    "Completion": _object(
        {
            "id": _string(),
            "object": _string(enum=["chat.completion", "text_completion"]),
            "created": _integer(),
            "model": _string(),
            "choices": _list(
                _object(
                    {
                        "index": _integer(),
                        "message": {"$ref": "#/components/schemas/Message"},
                        "text": _string(),
                        "finish_reason": _REASON,
                    },
                    *("index", "finish_reason"),
                )
            ),
            "usage": _USAGE,
        },
        *("id", "object", "created", "model", "choices", "usage"),
    ),
    "EmbeddingQuestion": _object(
        {
            "model": _optional(_string()),
            "input": {"anyOf": [_string(minLength=1), _list(_string(minLength=1), minItems=1, maxItems=2048)]},
            "encoding_format": _optional(_string(enum=["float", "base64"])),
            "dimensions": _optional(_integer("The model's own number only.")),
        },
        "input",
    ),
    "Embeddings": _object(
        {
            "object": _string(const="list"),
            "data": _list(
                _object(
                    {
                        "object": _string(const="embedding"),
                        "index": _integer(),
                        "embedding": {"anyOf": [_list({"type": "number"}), _string("Little-endian float32, base64.")]},
                    },
                    *("object", "index", "embedding"),
                )
            ),
            "model": _string(),
            "usage": _USAGE,
        },
        *("object", "data", "model", "usage"),
    ),
    "Model": _object(
        {
            "id": _string(),
            "object": _string(const="model"),
            "created": _integer(),
            "owned_by": _string("The backend."),
            "max_model_len": _integer("Tokens of the context."),
        },
        *("id", "object", "created", "owned_by"),
    ),
    "Models": _object(
        {"object": _string(const="list"), "data": _list({"$ref": "#/components/schemas/Model"})}, "object", "data"
    ),
    "Event": _object(
        {"data": _string("JSON, or [DONE]."), "event": _string(enum=["message", "error"])},
        "data",
        description="A server-sent event.",
    ),
    "Error": _object({"error": _string(), "status": _integer()}, "error", "status"),
    "OpenAIError": _object(
        {
            "error": _object(
                {
                    "message": _string(),
                    "type": _string(),
                    "param": _optional(_string()),
                    "code": _optional(_string()),
                },
                *("message", "type", "param", "code"),
            )
        },
        "error",
    ),
}

_REFUSALS = {
    "400": "A field is wrong, or the prompt is longer than the context.",
    "401": "The key is missing or wrong.",
    "403": "Host, Origin or model is not allowed.",
    "404": "There is no such model.",
    "413": "The body is longer than 1 MiB.",
    "429": "The queue is full, or a limit is reached: Retry-After tells the seconds.",
    "500": "The model failed.",
    "501": "This server or model cannot do it.",
    "503": "Paused, or the model is not ready.",
}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(name: str, kind: str = "application/json", **more: Any) -> dict[str, Any]:
    return {kind: {"schema": _reference(name), **more}}


def _responses(answer: str, error: str | None, *, streams: bool = False) -> dict[str, Any]:
    content = _content(answer)
    if streams:
        content["text/event-stream"] = {"schema": _reference("Event")}
    responses = {"200": {"description": "Success.", "content": content}}
    for status, about in _REFUSALS.items() if error is not None else ():
        responses[status] = {"description": about, "content": _content(error or "")}
    return responses


def _post(
    summary: str,
    question: str,
    answer: str,
    example: dict[str, Any],
    *,
    error: str | None = "Error",
    streams: bool = False,
) -> dict[str, Any]:
    body = {"required": True, "content": _content(question, example=example)}
    return {"post": {"summary": summary, "requestBody": body, "responses": _responses(answer, error, streams=streams)}}


def _get(summary: str, answer: str, *parameters: str) -> dict[str, Any]:
    given = [{"name": name, "in": "path", "required": True, "schema": _string()} for name in parameters]
    return {"get": {"summary": summary, "parameters": given, "responses": _responses(answer, "OpenAIError")}}


_HELLO = {"messages": [{"role": "user", "content": "hello"}]}

PATHS: dict[str, dict[str, Any]] = {
    "/": _post("Answer, as ChatGLM-6B's api.py", "Question", "Answer", {"prompt": "你好", "history": []}, streams=True),
    "/chat": {
        "post": {
            "summary": "Answer, as the GLM API; with request_id and query, begin an answer of the polling API",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"anyOf": [_reference("Question"), _reference("PollingQuestion")]},
                        "examples": {
                            "glm": {"value": {"prompt": "如果今天下雨，", "max_length": 4096}},
                            "polling": {"value": {"request_id": "42", "query": "你好", "history": []}},
                        },
                    }
                },
            },
            "responses": _responses("GlmAnswer", "Error")
            | {
                "200": {
                    "description": "Success; any response of the polling API.",
                    "content": {
                        "application/json": {
                            "schema": {"anyOf": [_reference("GlmAnswer"), _reference("PollingResult")]}
                        }
                    },
                }
            },
        }
    },
    "/get_response": _post("Read the answer so far", "PollingId", "PollingResult", {"request_id": "42"}, error=None),
    "/chat-stream": _post(
        "Answer as events with all text so far", "Question", "GlmAnswer", {"prompt": "如果今天下雨，"}, streams=True
    ),
    "/tokenize": _post("Tokenize a prompt", "Text", "Tokens", {"prompt": "如果今天下雨，"}),
    "/embedding": _post("Embed texts, as the GLM API", "Texts", "Vectors", {"prompt": ["今天下雨", "hello"]}),
    "/v1/chat/completions": _post(
        "Answer a conversation", "ChatQuestion", "Completion", _HELLO, error="OpenAIError", streams=True
    ),
    "/v1/completions": _post(
        "Answer a single question",
        "TextQuestion",
        "Completion",
        {"prompt": "hello", "max_tokens": 64},
        error="OpenAIError",
        streams=True,
    ),
    "/v1/embeddings": _post(
        "Embed texts", "EmbeddingQuestion", "Embeddings", {"input": ["今天下雨", "hello"]}, error="OpenAIError"
    ),
    "/v1/models": _get("List the chat models", "Models"),
    "/v1/models/{id}": _get("Describe a model", "Model", "id"),
}


def document() -> dict[str, Any]:
    """Return the document, in the form of OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ChatGLM bot",
            "version": __version__,
            "description": "The HTTP APIs of ChatGLM-6B's servers, and OpenAI's.",
        },
        "security": [{}, {"key": []}],
        "paths": PATHS,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "A key of [server.keys]."}},
        },
    }
