"""Requests that went through a gateway, as tests make them up, and a server for routes."""

import threading

import uvicorn
from fastapi import FastAPI

from adapter.serve.exchange import Exchange

AT = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


def exchange(number: int = 1, **changes: object) -> Exchange:
    """An answer of the API that the adapter corrected."""
    given = {"id": f"x{number}", "at": AT + number, "protocol": "anthropic", "model": "claude-haiku-4-5", "stream": False,
             "mode": "on", "action": "corrected", "why": "", "status": 200, "question": f"What is {number} + 1?",
             "api_text": f"It is {number}.", "api_extracted": str(number), "completion": f"\\boxed{{{number + 1}}}",
             "verdict": "override", "confidence": 0.875, "final": str(number + 1), "step": 40, "seconds": 0.5,
             "api_seconds": 0.3, "adapter_seconds": 0.15, "input_tokens": 20, "output_tokens": 5, "cost": 0.0001}
    return Exchange(**(given | changes))


class Served:
    """An app behind uvicorn, on a port of its own, while the block lasts."""

    def __init__(self, app: FastAPI):
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> "Served":
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            threading.Event().wait(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
