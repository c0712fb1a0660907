"""The gateway: an API's clients change a base URL, and its answers come corrected.

    python -m adapter.serve --run runs/mine --upstream anthropic                          http://127.0.0.1:8080
    python -m adapter.serve --run runs/mine --upstream http://127.0.0.1:8000 --mode shadow
    python -m adapter.serve --run runs/mine --upstream openai --mode canary=5% --threshold auto

It speaks Anthropic's /v1/messages and OpenAI's /v1/chat/completions, plain and streaming. A caller's key goes on to the API,
and is kept nowhere. Every response says in headers, x-corrector-..., what became of it; docs/gateway.md says what they mean.
SIGTERM and SIGINT: no more requests are taken, those in flight get their answers, and the exit code is 0. SIGHUP: the LoRA
that the run keeps by now is served from then on.
"""

import argparse
import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapter.commands import run
from grpo.run.files import at_home, brief, printable
from grpo.types import UserError

if TYPE_CHECKING:
    from adapter.serve.engine import Engine
    from adapter.serve.gate import Rules

LONGEST_HEADERS = 64 * 2**10  # bytes of a request's head
WHOLE = ("on", "shadow")  # modes that concern every question


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """The command's options. Raises UserError where one has a value that it cannot have."""
    parser = argparse.ArgumentParser(prog="python -m adapter.serve", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=at_home, metavar="DIR", help="a run that train.py wrote")
    parser.add_argument("--upstream", required=True, metavar="API", help="anthropic, openai, or a server's address")
    parser.add_argument("--mode", default="on", metavar="MODE", help="on; shadow: callers get the API's answers; "
                        "canary=5%%: that share of the questions is corrected (default on)")
    parser.add_argument("--threshold", metavar="T", help="least confidence of an override, in [0, 1], or auto: the one "
                        "that adapter.evaluate chose")
    parser.add_argument("--fail", choices=("open", "closed"), default="open", help="where the adapter fails, the caller "
                        "gets the API's answer (open, the default), or an error 503 (closed)")
    parser.add_argument("--timeout-ms", type=int, default=10_000, metavar="N", help="that the adapter may take (10000)")
    parser.add_argument("--at-once", type=int, metavar="N", help="questions that the adapter is asked at once; more get the "
                        "API's answers (the run's rollout.max_sequences)")
    parser.add_argument("--max-body-mb", type=int, default=10, metavar="N", help="the longest request, in 2^20 bytes (10)")
    parser.add_argument("--capture", type=at_home, metavar="DIR", help="write questions, answers and verdicts there, for "
                        "adapter.dataset --from-capture")
    parser.add_argument("--capture-mb", type=int, default=1024, metavar="N", help="of all that is captured, in 2^20 bytes; "
                        "the oldest makes room (1024)")
    parser.add_argument("--redact", metavar="FILE.py:FUNCTION", help="a function of yours that each captured row goes "
                        "through: row -> row, or None to leave it out")
    parser.add_argument("--truths", type=at_home, metavar="FILE", help="questions whose answers you know, as JSON lines: "
                        "the page counts fixes and harms of these")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free (8080)")
    options = parser.parse_args(arguments)
    for name, least in (("timeout_ms", 1), ("at_once", 1), ("max_body_mb", 1), ("capture_mb", 8)):
        if (value := getattr(options, name)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected {least} or more")
    if options.capture is None and (options.redact is not None or options.capture_mb != 1024):
        raise UserError("--redact and --capture-mb: say what is captured, and nothing is; add --capture DIR")
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port {options.port}: expected 0 to 65535")
    mode_of(options.mode)
    return options


def main(arguments: list[str]) -> None:
    """The command."""
    options = options_of(arguments)
    mode, share = mode_of(options.mode)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn.error").addFilter(  # it says so of every answer that breaks off as the API's did
        lambda record: "without completing response" not in record.getMessage())

    from adapter.serve.upstream import address_of  # from here on it takes seconds

    address = address_of(options.upstream)
    with listener(options.host, options.port) as sock:
        import uvloop

        from adapter.serve.engine import Engine
        from adapter.serve.gate import Rules

        engine = Engine(options.run, options.threshold)
        rules = Rules(mode, share, options.timeout_ms / 1000,
                      options.at_once or engine.adapter.config.rollout.max_sequences, options.fail == "open")
        uvloop.run(serve(engine, rules, address, options, sock))


def mode_of(text: str) -> tuple[str, float]:
    """A mode, and the share of the questions that it concerns. Raises UserError."""
    if text in WHOLE:
        return text, 1.0
    name, _, share = text.partition("=")
    try:
        percent = float(share.removesuffix("%")) if name == "canary" and share.endswith("%") else -1.0
    except ValueError:
        percent = -1.0
    if not 0 < percent <= 100:
        raise UserError(f"--mode {brief(text, 40)}: expected on, shadow, or a share of the questions such as canary=5%")
    return "canary", percent / 100


def listener(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet. Raises UserError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {brief(host, 60)} --port {port}: cannot be listened on "
                        f"({getattr(error, 'strerror', None) or error}); choose another") from None
    return sock


async def serve(engine: "Engine", rules: "Rules", address: str, options: argparse.Namespace, sock: socket.socket) -> None:
    """Start vLLM, serve until a signal, and stop. Raises UserError where vLLM does not start."""
    import uvicorn

    from adapter.serve.app import make_app
    from adapter.serve.gate import Gate
    from adapter.serve.page import About
    from adapter.serve.service import Service
    from adapter.serve.upstream import Upstream

    run = engine.adapter
    corrector = run.task_class.make_corrector(run.settings)
    service = Service(options.run, options.host, options.capture, options.capture_mb * 2**20, options.redact, options.truths,
                      corrector)
    gate = Gate(corrector, run.settings.api_prompt, engine, rules)

    def about(notes: Sequence[str], truths: int) -> About:
        down = [] if engine.up else ["the adapter's engine is down: callers get the API's answers"]
        refused = [f"the last reload was refused: {engine.refused}"] if engine.refused else []
        return About(str(options.run), options.mode, engine.step, address, [*down, *refused, *notes], truths)

    longest = options.max_body_mb * 2**20

    async def decide(question: str, api_text: str) -> str | None:
        return await app.state.relay.guard(question, api_text)

    app = make_app(gate, Upstream(address, secret=service.token), run.settings.api_system, service.observers,
                   service.routers(engine, about, decide, longest), [service.close], longest)
    service.count(app.state.metrics.registry)
    config = uvicorn.Config(app, http="h11", loop="none", lifespan="on", access_log=False, log_config=None,
                            server_header=False, date_header=False, h11_max_incomplete_event_size=LONGEST_HEADERS)
    reloads: set[asyncio.Task] = set()

    def reload() -> None:
        task = asyncio.create_task(service.reload(engine))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    try:
        await engine.start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        sock.listen(2048)  # what comes before uvicorn takes over waits a moment
        host, port = sock.getsockname()[:2]
        said = f"{options.run}: step {engine.step} corrects {address} on http://{host}:{port}, mode {options.mode}"
        print(printable(said), flush=True)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)  # uvicorn has its own while it serves, and raises it again at its end
        await uvicorn.Server(config).serve(sockets=[sock])
    finally:
        await engine.close()


if __name__ == "__main__":
    sys.exit(run(main))
