"""The engine and its HTTP APIs as an application of Ray Serve: `serve run deploy.ray.engine:app replicas=2`.

Settings are those of `bot serve`: config.toml in the working folder, or the file that BOT_CONFIG names, and BOT_
variables.  There is no database, no chat page and no platform: bots use it with `backend = "remote"`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from bot.adapters import SETTINGS
from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.sources import load_config
from bot.engine import BACKENDS, open_engine, preflight
from bot.engine.router import ModelRouter
from bot.observability.health import engine_fault
from bot.observability.logging import configure_logging
from bot.observability.metrics import Metrics
from bot.server.app import create_server, own_limits
from bot.server.generation import Backend
from bot.util.aio import BackgroundTasks
from bot.util.clock import MonotonicClock

# Of this process: a replica has one.
_engines: list[ModelRouter] = []


def build_apis() -> ASGIApp:
    """Return the application; its startup opens the engine."""
    apis: list[ASGIApp] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        path = os.environ.get("BOT_CONFIG")
        config = load_config(Path(path) if path else None, SETTINGS, BACKENDS).config
        configure_logging(config.logs)
        clock = MonotonicClock()
        async with (
            ModelRouter(config.sections, open_engine, clock, check=preflight) as engine,
            BackgroundTasks() as tasks,
        ):
            _engines.append(engine)
            access = Access(config.access, config.limits, clock, own_limits(config.server))
            backend = Backend(
                engine,
                ChatSettings.of(config),
                access,
                config.engine.max_waiting,
                Metrics(),
                models=engine.statuses,
                aliases=config.server.aliases,
            )
            apis.append(create_server(config.server, backend, clock, tasks))
            yield
            _engines.clear()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await apis[0](scope, receive, send)

    return Starlette(routes=[Mount("/", answer)], lifespan=lifespan)


class EngineReplica:
    """One replica: a process with the model."""

    def check_health(self) -> None:
        """Let Ray replace the replica once its engine is down, or stuck for a minute.

        Raises:
            RuntimeError: The engine cannot answer.
        """
        for engine in _engines:
            if fault := engine_fault(engine.load, stalled_seconds=60.0):
                raise RuntimeError(fault)


# Not as decorators, whose types are Ray's: an extra.
DEPLOYMENT: Any = serve.deployment(name="engine")(serve.ingress(build_apis)(EngineReplica))


def app(arguments: dict[str, str]) -> Application:
    """Return the application for `serve run` and the `args` of a configuration file.

    `replicas` (1), or `min_replicas` and `max_replicas` with `ongoing` (8) requests for each; `gpus` (0) of each
    replica, also a fraction; `cpus` (1).
    """
    resources = {"num_cpus": float(arguments.get("cpus", 1)), "num_gpus": float(arguments.get("gpus", 0))}
    ongoing = int(arguments.get("ongoing", 8))
    deployment = DEPLOYMENT.options(
        ray_actor_options=resources,
        # More than one batch, so that the engine's own queue is the one that is fair.
        max_ongoing_requests=16 * ongoing,
    )
    if "max_replicas" in arguments:
        scaling = AutoscalingConfig(
            min_replicas=int(arguments.get("min_replicas", 1)),
            max_replicas=int(arguments["max_replicas"]),
            target_ongoing_requests=ongoing,
        )
        deployment = deployment.options(autoscaling_config=scaling)
    else:
        deployment = deployment.options(num_replicas=int(arguments.get("replicas", 1)))
    application: Application = deployment.bind()
    return application
