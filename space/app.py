"""One encoder, many tasks: the Space. `python app.py` starts it; config.yaml says what it serves."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from typing import Any

# Before Gradio is imported, which reads these once.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from gradio.route_utils import FnIndexInferError
from spafit_space.bodies import SmallBodies
from spafit_space.config import load_config
from spafit_space.page import CSS, HEAD, build, theme
from spafit_space.service import Service
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from spafit_hf.predictor.memory import keep_freed_memory


def no_function(_request: Any, _error: Exception) -> JSONResponse:
    """The answer to a call of a function that this page does not have, such as /add_adapter where adding is off."""
    return JSONResponse({"detail": "There is no such function here; /gradio_api/info lists those there are."}, 404)


def launch_options(service: Service) -> dict[str, Any]:
    """What the page is launched with: its looks, no history of runs, no stack traces, MCP where it can be."""
    mcp = service.config.mcp and importlib.util.find_spec("mcp") is not None
    return {
        "theme": theme(),
        "css_paths": [CSS],
        "head": HEAD,
        "footer_links": ["api", "settings"],
        "run_history": False,  # it would keep what is typed
        "show_error": False,
        "ssr_mode": False,
        "mcp_server": mcp,
        "max_file_size": 1,  # nothing here takes a file
        # Gradio answers neither an unknown name nor an unknown number, and logs a trace for each.
        "app_kwargs": {
            "exception_handlers": {FnIndexInferError: no_function, KeyError: no_function},
            "middleware": [Middleware(SmallBodies)],
        },
    }


def queue_options(service: Service) -> dict[str, Any]:
    """How many requests are answered at a time and may wait; as in a Space of the Hub, none goes past the queue."""
    config = service.config
    return {"max_size": config.queue, "default_concurrency_limit": config.concurrency, "api_open": False}


def main() -> int:
    """Start the Space and serve until it is stopped."""
    keep_freed_memory()
    torch.set_flush_denormal(True)  # an adapter of weights like 1e-39 would take everyone's pass seven times as long
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        service = Service.start(load_config())
    except ValueError as error:
        print(f"The Space cannot start: {error}", file=sys.stderr)
        return 2
    names = ", ".join(member.name for member in service.members) or "no adapters"
    print(f"Base {service.base_name} with {names}.", flush=True)
    page = build(service)
    page.queue(**queue_options(service))
    page.launch(**launch_options(service))
    return 0


if __name__ == "__main__":
    sys.exit(main())
