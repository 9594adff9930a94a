"""The snippets on the page about HTTP routes work."""

from tests.project.snippets import checkout, file_of, names_in, snippets

PAGE = "ADDING_AN_API.md"
VERSION, VERSION_ROUTE, PIECES, PIECES_ROUTE, DESCRIPTION, TESTS = snippets(PAGE)

VERSION_TEST = """\
# tests/observability/test_http.py
from bot import __version__


async def test_the_version_is_served(parts: Components) -> None:
    app = create_app(Health(parts, 60.0, ManualClock()), CollectorRegistry())
    async with serve_operations(OperationsSection(port=0), app) as port, aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{port}/version") as response:
            assert await response.json() == {"version": __version__}
"""

EVENTS_TEST = """\
# tests/server/test_pieces.py
from typing import get_args

from bot.domain import Delta, EngineEvent, Fallback, Finished, FinishReason, Queued, Thought


async def test_every_event_of_an_engine_is_handled(http: aiohttp.ClientSession, engine: ScriptedEngine) -> None:
    events = [Queued(1), Fallback("other"), Thought("hm"), Delta("hello"), Finished(FinishReason.STOP)]
    assert {type(event) for event in events} == set(get_args(EngineEvent))
    engine.add(events)
    assert await ask(http) == [{"model": "other"}, {"text": "hello"}, {"finished": "stop"}]
"""


def test_the_snippets_work_in_their_files() -> None:
    with checkout() as copy:
        for snippet in (VERSION, PIECES, TESTS, VERSION_TEST, EVENTS_TEST):
            copy.write(snippet)
        copy.insert(VERSION_ROUTE, 'Route("/livez", livez), ')
        copy.insert(PIECES_ROUTE, 'post("/tokenize", tokenize),\n')
        copy.insert(DESCRIPTION, "PATHS: dict[str, dict[str, Any]] = {\n")
        path, _ = file_of(PIECES)
        copy.write(f"# bot/server/app.py\nfrom {'.'.join(path.with_suffix('').parts)} import pieces\n")
        openapi = "tests/server/test_openapi.py"
        copy.run_tests(
            *names_in(TESTS),
            *names_in(VERSION_TEST),
            *names_in(EVENTS_TEST),
            f"{openapi}::test_it_is_served_and_valid",
            f"{openapi}::test_it_has_every_route",
            f"{openapi}::test_each_example_is_answered_as_it_says[/pieces]",
        )
