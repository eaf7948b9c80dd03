"""The port of the server."""

import ipaddress
import socket
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

from pipeline.core.params import BadInput


def host_names(host: str) -> set[str]:
    """The names by which a server that is bound to `host` may be asked."""
    return {"localhost", socket.gethostname(), host}


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to a host and port; 0 is any free one.  Raises `BadInput` if that cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"--host {host} --port {port}: {reason}. Name others.") from None


def address(bound: socket.socket) -> str:
    """What to type into a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def run(app: ASGIApp, bound: socket.socket) -> None:
    """Answer requests until Ctrl-C."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=3,
    )
    with suppress(KeyboardInterrupt):  # the way to end it
        uvicorn.Server(config).run(sockets=[bound])
