"""What single servers say when they refuse or fail, and what the operator reads of it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, Finished, FinishReason, SamplingParams, Usage
from bot.engine.backends.remote import RemoteEngine
from bot.engine.remote.errors import failure, read_refusal
from bot.engine.remote.tokens import TokenEstimates, estimate_tokens
from bot.errors import EngineFailed, EngineMisconfigured, PromptTooLong
from tests.engine.remote_bench import QUESTION, ask, remote, text_of
from tests.harness.fakes import FastClock, ManualClock
from tests.harness.loop_monitor import LoopMonitor
from tests.harness.servers.model_server import ModelServer, refuse, say


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


def _error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | more}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, _error('model "scripted" not found, try pulling it first'), "set engine.model to one of scripted"),
        (404, _error("The model `scripted` does not exist.", param="model"), "set engine.model to one of scripted"),
        (400, _error('Invalid model identifier "scripted".', param="model"), "set engine.model to one of scripted"),
        (400, _error("Invalid model name passed in model=scripted", param="model"), "set engine.model to one of"),
        (404, _error("No models loaded. Please load a model", code="model_not_found"), "no model is loaded there"),
        (402, _error("Insufficient Balance"), "no budget left"),
        (405, {"detail": "Method Not Allowed"}, "refuses the request"),
    ],
    ids=["Ollama", "vLLM", "LM Studio", "LiteLLM", "LM Studio, none", "DeepSeek", "a web page"],
)
async def test_a_model_or_key_that_cannot_be_used_is_said(
    server: ModelServer, status: int, body: object, words: str
) -> None:
    server.then(refuse(status, body))
    async with remote(server, model="scripted") as engine:
        with pytest.raises(EngineFailed, match=words):
            await ask(engine)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, _error("Budget has been exceeded! Current cost: 10.1, Max budget: 10.0"), "no budget left"),
        (400, _error('"nomic-embed-text" does not support chat'), "not made for chats"),
        (400, _error("you must provide a chat template if the tokenizer does not define one."), "not made for chats"),
        (400, _error("Failed to load model. Error: insufficient system resources."), "too little memory"),
        (400, _error("triggered Azure's content management policy", code="content_filter"), "its filter"),
        (403, _error("Your chosen model requires moderation and your input was flagged"), "its filter"),
        (413, "<html>Request Entity Too Large</html>", "refuses the request \\(413\\)"),
        (403, "<html>Attack detected</html>", "a firewall may not let its text pass"),
    ],
    ids=["LiteLLM", "Ollama", "vLLM", "LM Studio", "Azure", "OpenRouter", "nginx", "a firewall"],
)
async def test_a_refused_request_harms_no_other_and_its_reason_is_logged(
    server: ModelServer, status: int, body: object, words: str
) -> None:
    server.then(refuse(status, body))
    async with remote(server) as engine:
        with capture_logs() as logs, pytest.raises(EngineFailed, match=words):
            await ask(engine)
        assert "a model server refuses a request" in str(logs)
        assert engine.load.fault is None, "the server is well"
        assert await text_of(engine) == "a scripted answer"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("the model's maximum context length is 300 tokens", "Invalid text: {words}"),
        ("may I stop, seed and temperature the bath?", "This was flagged: '{words}'"),
        ("at most 0 images may be shown", "not allowed: {words}"),
    ],
    ids=["context", "parameters", "pictures"],
)
async def test_a_question_quoted_in_a_refusal_is_not_the_servers_word(
    server: ModelServer, words: str, message: str
) -> None:
    server.then(refuse(400, _error(message.format(words=words))))
    async with remote(server, vision=True) as engine:
        before = engine.info, engine.count_tokens(QUESTION.messages)
        with pytest.raises(EngineFailed, match="refuses the request"):
            await ask(engine, ChatRequest((ChatMessage("user", f"Tell me: {words}"),), QUESTION.params))
        assert (engine.info, engine.count_tokens(QUESTION.messages)) == before
        await ask(engine)
    assert {"stop", "seed", "temperature"} <= server.bodies[-1].keys()


async def test_a_body_that_a_refusal_repeats_names_no_parameter(server: ModelServer) -> None:
    problem = {"loc": ["body", "logit"], "msg": "Field required", "input": {"seed": 5, "stop": ["END"], "top_k": 50}}
    server.then(refuse(422, {"detail": [problem]}))
    async with remote(server) as engine:
        with pytest.raises(EngineFailed, match="refuses the request"):
            await ask(engine)
    assert len(server.bodies) == 1


async def test_a_parameter_whose_absence_does_not_help_is_sent_again(server: ModelServer) -> None:
    server.then(refuse(400, _error("no seed today")), refuse(400, _error("nor anything else")))
    async with remote(server) as engine:
        with pytest.raises(EngineFailed, match="refuses the request"):
            await ask(engine)
        assert await text_of(engine) == "a scripted answer"
    assert ["seed" in body for body in server.bodies] == [True, False, True]


async def test_a_value_out_of_bounds_is_left_out_of_that_request_only(server: ModelServer) -> None:
    too_high = refuse(400, _error("max_tokens is too large: 9. At most 4 are supported.", param="max_tokens"))
    still_too_high = refuse(400, _error("max_completion_tokens must be less than 5", param="max_completion_tokens"))
    server.then(too_high, still_too_high)
    async with remote(server) as engine:
        assert await text_of(engine) == await text_of(engine) == "a scripted answer"
    asked = [body.keys() & {"max_tokens", "max_completion_tokens"} for body in server.bodies]
    assert asked == [{"max_tokens"}, {"max_completion_tokens"}, set(), {"max_tokens"}]


async def test_an_answer_ends_at_a_stop_string_that_the_server_does_not_know(server: ModelServer) -> None:
    server.then(
        refuse(400, _error("Unsupported parameter: 'stop'", param="stop")),
        say("One. E", "N", "D", " Two."),
        say("One E"),
    )
    async with remote(server) as engine:
        events = await ask(engine)
        assert [event for event in events if isinstance(event, Delta)] == [Delta("One. ")]
        assert events[-1] == Finished(FinishReason.STOP, Usage(6, 2))
        await server.until(lambda: not server.running)
        assert await text_of(engine) == "One E"
        assert "stop" not in server.bodies[-1]


@pytest.mark.parametrize(
    ("status", "message"), [(403, "Forbidden"), (401, "Insufficient permissions. Missing scopes: api.model.read")]
)
async def test_a_key_that_may_not_list_models_may_answer(server: ModelServer, status: int, message: str) -> None:
    server.list_refusal = status, _error(message)
    async with remote(server, model="scripted") as engine:
        assert engine.load.fault is None
        assert await text_of(engine) == "a scripted answer"
    with pytest.raises(EngineMisconfigured, match="refuses the key"):
        async with remote(server):
            pass


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_may_neither_list_nor_answer_is_said(server: ModelServer, status: int) -> None:
    server.list_refusal = status, _error("no")
    server.then(refuse(status, _error("no")))
    async with remote(server, model="scripted") as engine:
        with pytest.raises(EngineFailed, match="refuses the key"):
            await ask(engine)
        assert "refuses the key" in str(engine.load.fault)


async def test_a_request_that_one_server_refuses_is_sent_to_another() -> None:
    async with ModelServer() as one, ModelServer() as two, ModelServer() as three, remote(one, two, three) as engine:
        for server in (one, two, three):
            server.then(refuse(400, _error("no")))
        with pytest.raises(EngineFailed, match="refuses the request"):
            await ask(engine)
        assert len(one.bodies + two.bodies + three.bodies) == 2
        assert await text_of(engine) == "a scripted answer"


async def test_why_a_server_fails_is_said_with_the_last_error(server: ModelServer) -> None:
    server.default = refuse(500, _error("model requires more system memory (8.4 GiB) than is available (5.1 GiB)"))
    async with remote(server) as engine:
        with pytest.raises(EngineFailed, match="it answers 500: it has too little memory for the model"):
            await ask(engine)
        assert "too little memory" in str(engine.load.fault)


async def test_a_template_without_a_system_role_gets_the_instructions_with_the_first_question(
    server: ModelServer,
) -> None:
    server.then(refuse(400, _error("System role not supported")))
    messages = (ChatMessage("system", "Be brief."), *QUESTION.messages)
    async with remote(server) as engine:
        assert await text_of(engine, ChatRequest(messages)) == "a scripted answer"
        assert await text_of(engine, ChatRequest(messages)) == "a scripted answer"
    assert [message["role"] for body in server.bodies for message in body["messages"]] == [
        "system",
        "user",
        "user",
        "user",
    ]
    assert server.bodies[-1]["messages"][0]["content"] == "Be brief.\n\nwhy?"


async def test_a_model_that_a_server_does_not_list_is_a_warning(server: ModelServer) -> None:
    server.models[0]["id"] = "llama3.2:latest"
    with capture_logs() as logs:
        async with remote(server, model="llama3.2"):
            pass
        assert not logs
        async with remote(server, model="llama9"):
            pass
    assert [(log["event"], log["known"]) for log in logs] == [
        ("the model is not in a server's list", "llama3.2:latest")
    ]


async def test_an_address_without_its_version_is_said() -> None:
    async def lists(request: web.Request) -> web.Response:
        return web.json_response({"error": "Unexpected endpoint or method. (GET /models)"})  # LM Studio's, with 200

    app = web.Application()
    app.router.add_get("/models", lists)
    async with TestServer(app) as served:
        section = EngineSection(backend="remote", urls=(str(served.make_url("/")),), model="scripted")
        async with RemoteEngine(section, FastClock()) as engine:
            assert "do engine.urls end in /v1?" in str(engine.load.fault)


async def test_a_server_without_a_model_is_said(server: ModelServer) -> None:
    server.models = []
    with pytest.raises(EngineMisconfigured, match="has no model: load one there"):
        async with remote(server):
            pass


async def test_a_short_prompt_that_is_refused_as_too_long_does_not_silence_the_bot(server: ModelServer) -> None:
    too_long = refuse(400, _error("too many tokens", code="context_length_exceeded"))
    server.then(too_long, too_long, too_long)
    async with remote(server) as engine:
        before = engine.count_tokens(QUESTION.messages)
        for _ in range(3):
            with pytest.raises(PromptTooLong):
                await ask(engine)
        assert before < engine.count_tokens(QUESTION.messages) <= 4 * before
        assert await text_of(engine) == "a scripted answer"
        assert engine.count_tokens(QUESTION.messages) == before, "the usage of the answer has shown it"


@pytest.mark.parametrize(
    "message",
    [
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 800. This model's maximum context length is 900 tokens "
            "and your request has 200 input tokens (800 > 900 - 200)."
        ),
        (
            "This model's maximum context length is 900 tokens. However, you requested 1000 tokens (200 in the messages, "
            "800 in the completion). Please reduce the length of the messages or completion."
        ),
        (
            "You passed 200 input tokens and requested 800 output tokens. However, the model's context length is only 900 "
            "tokens, resulting in a maximum input length of 100 tokens."
        ),
        (
            "Requested token count exceeds the model's maximum context length of 900 tokens. You requested a total of 1000 "
            "tokens: 200 tokens from the input messages and 800 tokens for the completion."
        ),
        "`inputs` tokens + `max_new_tokens` must be <= 900. Given: 200 `inputs` tokens and 800 `max_new_tokens`",
        "input length and `max_tokens` exceed context limit: 200 + 800 > 900, decrease input length or `max_tokens`",
    ],
    ids=["vLLM", "OpenAI", "vLLM 0.11", "SGLang", "TGI", "Anthropic"],
)
async def test_an_answer_that_does_not_fit_beside_its_prompt_may_be_shorter(server: ModelServer, message: str) -> None:
    server.then(refuse(400, _error(message)))
    request = ChatRequest(QUESTION.messages, SamplingParams(max_tokens=800))
    async with remote(server, context_length=2000) as engine:
        before = engine.count_tokens(request.messages)
        assert await text_of(engine, request) == "a scripted answer"
        assert [body["max_tokens"] for body in server.bodies] == [800, 699]
        assert (engine.count_tokens(request.messages), engine.info.context_length) == (before, 2000)
        server.then(refuse(400, _error(message.replace("200", "1200"))))
        with pytest.raises(PromptTooLong):
            await ask(engine, request)


async def test_the_longest_answer_leaves_room_for_the_models_template(server: ModelServer) -> None:
    async with remote(server, context_length=400) as engine:
        await ask(engine, ChatRequest(QUESTION.messages, SamplingParams(max_tokens=400)))
        await ask(engine, ChatRequest((ChatMessage("user", "word " * 225),), SamplingParams(max_tokens=400)))
    prompts = [estimate_tokens(body["messages"][0]["content"]) for body in server.bodies]
    assert [body["max_tokens"] for body in server.bodies] == [400 - prompts[0] - 64, 11]
    assert prompts[1] == 379


async def test_a_correction_by_a_refusal_expires() -> None:
    clock = ManualClock()
    estimates, messages = TokenEstimates(clock), (ChatMessage("user", "word " * 300),)
    before = estimates.of(messages)
    estimates.refused(messages, 2 * before)
    assert estimates.of(messages) == 2 * before
    await clock.advance(601)
    assert estimates.of(messages) == before
    estimates.counted(messages, 2 * before)
    await clock.advance(601)
    assert estimates.of(messages) == 2 * before, "a count does not"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            _error(
                "Rate limit reached for gpt-4o-mini: Limit 3, Used 3. Add a payment method: https://x.example/account/billing."
            ),
            "it answers 429",
        ),
        (
            _error("Requests have exceeded the call rate limit of your tier: https://x.example/oai/quotaincrease"),
            "it answers 429",
        ),
        (
            _error("You exceeded your current quota, please check your plan", code="insufficient_quota"),
            "no budget left",
        ),
    ],
)
def test_a_rate_limit_differs_from_a_used_up_budget(error: dict[str, Any], why: str) -> None:
    response = httpx.Response(429, json=error)
    told = failure(response, read_refusal(response, response.content)).why
    assert told.endswith(why)


async def test_a_long_prompt_that_is_refused_stops_nothing(server: ModelServer) -> None:
    text = "".join(f"word{number} " for number in range(80_000))
    refusal = "the prompt is not accepted: " + text[:4000]
    server.then(refuse(400, _error(refusal)))
    async with remote(server, context_length=10**6, model="scripted") as engine:
        with LoopMonitor() as monitor, pytest.raises(EngineFailed):
            await ask(engine, replace(QUESTION, messages=(ChatMessage("user", text),)))
    assert monitor.slow == []
