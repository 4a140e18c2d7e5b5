"""An exported policy as a small HTTP service: what `t2drl serve` does. Needs FastAPI and uvicorn, not PyTorch."""

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from lightning_t2drl import __version__
from lightning_t2drl.checks import within
from lightning_t2drl.deploy.controller import Controller
from lightning_t2drl.deploy.explain import chosen, explain, feeds_of, read_situation
from lightning_t2drl.errors import UserError

MOST_USERS = 10_000  # of one request
MOST_BYTES = 4_000_000  # of its body
MOST_SAMPLES = 64


@dataclass
class ServeConfig:
    """The configuration of `serve`; `configs/serve.yaml` says what each key means."""

    policy: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    seed: int = 0

    def __post_init__(self) -> None:
        within("", self, port=(0, 65535), seed=(0, 2**63 - 1))


def run_serve(arguments: Sequence[str]) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        UserError: a word cannot be applied, there is no exported policy, or the port is taken.
    """
    from lightning_t2drl.registry import typed
    from lightning_t2drl.run.overrides import parse, read

    given = parse(read(arguments).overrides)
    values: dict[str, Any] = {str(override.key_or_group): override.value() for override in given}
    config: ServeConfig = typed(ServeConfig, values, "")
    if config.policy is None:
        raise UserError("policy: missing; name the directory that t2drl export has written")
    try:
        import uvicorn

        controller = Controller(config.policy, config.seed)
        app = make_app(controller)
    except ImportError as error:
        raise UserError(
            f"serve: {error.name or error} is not installed; pip install 'lightning-t2drl[serve]'"
        ) from None
    except ValueError as error:
        raise UserError(str(error)) from None
    with _bound(config) as listener:
        host, port = listener.getsockname()[:2]
        print(
            f"{controller.policy['name']} at http://{host}:{port}: POST /allocate, /cache, /explain; GET /health",
            flush=True,
        )
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def _bound(config: ServeConfig) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        # Named as TCP, or asyncio would let the kernel hold small packets back: 40 ms on each answer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(2048)  # who comes before the service has started waits
    except OSError as error:
        raise UserError(f"host, port: {config.host}:{config.port} cannot be had ({error.strerror})") from None
    return listener


def make_app(controller: Controller) -> Any:
    """The service as an ASGI application.

    What a request says wrong gets status 422 and `{"error": ...}`, one line that names the key.
    """
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.exceptions import HTTPException

    Number = Annotated[float, Field(allow_inf_nan=False)]
    Numbers = Annotated[list[Number], Field(max_length=MOST_USERS)]
    Which = Annotated[list[Annotated[int, Field(strict=True)]], Field(max_length=MOST_USERS)]
    Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]

    class Body(BaseModel):
        model_config = ConfigDict(extra="forbid")

    class Cache(Body):
        popularity: Annotated[int, Field(strict=True)] | Numbers
        held: Which | None = None
        users: Annotated[float, Field(allow_inf_nan=False, ge=0)] | None = None
        nearby: Which | None = None

    class Slot(Body):
        request: Which
        input_mb: Numbers
        output_mb: Numbers
        cache: Which | None = None
        snr_db: Numbers | None = None
        gain: Numbers | None = None
        handover: Which | None = None
        nearby: Which | None = None
        uplink_interference: Number | None = None
        downlink_interference: Numbers | None = None
        seed: Seed | None = None

    class Allocate(Slot):
        cache: Which
        samples: Annotated[int, Field(strict=True, ge=1, le=MOST_SAMPLES)] | None = None

    class Explain(Slot):
        popularity: Annotated[int, Field(strict=True)] | Numbers | None = None
        held: Which | None = None

    app = FastAPI(title="Lightning-T2DRL", version=__version__, docs_url=None, redoc_url=None)  # pages need a network

    def refused(line: str, status: int = 422) -> JSONResponse:
        text = " ".join(line.split()).encode("ascii", "backslashreplace").decode()
        return JSONResponse({"error": text[:1000]}, status)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return refused(f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def no_such(request: Request, error: HTTPException) -> JSONResponse:
        status = 422 if error.status_code == 400 else error.status_code  # 400: FastAPI could not read the body
        return refused(f"{request.url.path}: {error.detail}", status)

    @app.exception_handler(ValueError)
    async def cannot_be(request: Request, error: ValueError) -> JSONResponse:
        return refused(str(error))

    @app.exception_handler(RuntimeError)
    async def damaged(request: Request, error: RuntimeError) -> JSONResponse:
        return refused(str(error), 503)

    class Limited:
        """Refuses a body that is too long before it is read."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            lengths = [value for name, value in scope.get("headers", ()) if name == b"content-length"]
            if any(name == b"transfer-encoding" for name, _ in scope.get("headers", ())):  # of any length
                await refused("body: say its length (Content-Length) instead of sending it in chunks")(
                    scope, receive, send
                )
            elif lengths and lengths[0].isdigit() and int(lengths[0]) > MOST_BYTES:
                await refused(f"body: longer than {MOST_BYTES} bytes")(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    app.add_middleware(Limited)
    policy, scenario = controller.policy, controller.policy["scenario"]
    facts = {"status": "ok", "policy": policy["name"], "scenario": scenario["name"], "models": controller.models,
             "users": controller.users, "popularity": policy["popularity"]}  # fmt: skip

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return facts

    # On the event loop, one after the other: a decision takes less than handing it to a thread.
    @app.post("/cache")
    async def cache(body: Cache) -> dict[str, Any]:
        held = None if body.held is None else chosen("held", body.held, controller.models)
        nearby = None if body.nearby is None else chosen("nearby", body.nearby, controller.models)
        return {"cache": np.flatnonzero(controller.cache(body.popularity, held, body.users, nearby)).tolist()}

    @app.post("/allocate")
    async def allocate(body: Allocate) -> dict[str, Any]:
        told = body.model_dump(exclude_none=True)
        feeds = feeds_of(controller, told, chosen("cache", body.cache, controller.models))
        bandwidth, steps = controller.allocate_checked(feeds, body.samples, body.seed)
        return {"bandwidth": bandwidth.tolist(), "steps": steps.tolist()}

    @app.post("/explain")
    def why(body: Explain) -> dict[str, Any]:
        told = body.model_dump(exclude_none=True)
        seed = told.pop("seed", 0)
        return explain(controller, read_situation(told), seed)

    return app
