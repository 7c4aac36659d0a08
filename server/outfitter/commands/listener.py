"""Where and how the gateway listens: its socket, TLS, proxies, and the bounds of connections."""

import socket
import ssl
from typing import Any

import uvicorn

from outfitter.config import GatewayConfig, InvalidConfig
from outfitter.connection import BoundedProtocol

BACKLOG = 2048
KEEP_ALIVE_S = 65


def listen(config: GatewayConfig) -> socket.socket:
    """The listening socket, bound before anything expensive starts; raises InvalidConfig.

    The system ends connections whose other end takes nothing, or is not there any more.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidConfig(f"cannot listen on {config.host}:{config.port}: {error}") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted sockets inherit it
        milliseconds = config.stall_seconds * 1000
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


def server_config(config: GatewayConfig, app: Any) -> uvicorn.Config:
    """How uvicorn serves `app`; raises InvalidConfig for a certificate that cannot be used."""
    _check_certificate(config)
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=config.drain_seconds,
        proxy_headers=config.proxy_headers,
        forwarded_allow_ips=config.forwarded_allow_ips,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
    )


def _check_certificate(config: GatewayConfig) -> None:
    if config.ssl_certfile is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, lambda: b"")
    except (OSError, ValueError) as error:
        advice = "give a certificate and its key in PEM, the key without a password"
        raise InvalidConfig(
            f"unsupported --ssl-certfile {str(config.ssl_certfile)!r}; {advice}: {error}"
        ) from error
