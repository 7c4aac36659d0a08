"""Connections to Redis or Valkey: one server or a cluster, and its errors as ours."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from taskvectors.errors import TierUnavailable, UnsupportedEngine

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
_TRUE = ("1", "true", "yes")


class RedisClient:
    """A client that connects when it is first asked; may be used from many threads and forks.

    url: `redis://`, `rediss://` (TLS) or `unix://`, with redis-py's options in the query
    (`ssl_ca_certs`, …); `redis+cluster://`, `rediss+cluster://` or `?cluster=true` for a cluster.
    timeout_s: of connecting and of each wait for bytes. Raises UnsupportedEngine for a URL that
    cannot be one; no message holds the URL's password.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url, self.is_cluster = _split_cluster(url)
        self.where = _public(self._url)
        self._options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "socket_read_size": 1 << 20,
            "retry": Retry(NoBackoff(), 0),  # the breaker tries again
            "protocol": 2,
        }
        if not self._url.startswith("unix:"):
            self._options["socket_keepalive"] = True
        self._lock = threading.Lock()
        self._cluster: RedisCluster | None = None
        self._server = self._open()

    def _open(self) -> redis.Redis:
        """Connects to nothing yet, but reads every option."""
        try:
            client = redis.Redis.from_url(self._url, **self._options)
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
        except (ValueError, TypeError, redis.RedisError):
            # Their messages may quote the part of a broken URL that holds the password.
            raise UnsupportedEngine(
                "the Redis URL cannot be used: check its port and the options after '?'; a password"
                " needs percent-encoding"
            ) from None
        return client

    def get(self) -> Any:
        """The redis-py client. Of a cluster, the first call asks it for its nodes."""
        if not self.is_cluster:
            return self._server
        with self._lock:
            if self._cluster is None:
                self._cluster = RedisCluster.from_url(self._url, **self._options)
            return self._cluster

    @contextmanager
    def translated(self) -> Iterator[None]:
        """The block's failures of the server as TierUnavailable."""
        try:
            yield
        except redis.AuthenticationError as error:
            raise TierUnavailable(
                f"Redis at {self.where} refuses the user or password: {error}"
            ) from error
        except (redis.TimeoutError, TimeoutError) as error:
            raise TierUnavailable(f"Redis at {self.where} did not answer in time") from error
        except (redis.RedisError, RedisClusterException, OSError) as error:
            raise TierUnavailable(f"Redis at {self.where} fails: {error}") from error

    def close(self) -> None:
        """Close idle connections."""
        self._server.close()
        if self._cluster is not None:
            self._cluster.close()


def _split_cluster(url: str) -> tuple[str, bool]:
    """A URL that redis-py reads, and whether it is a cluster's."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UnsupportedEngine("the Redis URL cannot be read: check its brackets") from None
    if parts.scheme not in SCHEMES:
        raise UnsupportedEngine(
            f"unsupported scheme {parts.scheme[:20]!r} of the Redis URL; choose"
            f" {', '.join(SCHEMES)}"
        )
    scheme, _, suffix = parts.scheme.partition("+")
    query = dict(parse_qsl(parts.query))
    is_cluster = query.pop("cluster", str(bool(suffix))).lower() in _TRUE
    if is_cluster and scheme == "unix":
        raise UnsupportedEngine("a Redis cluster is reached by redis:// or rediss://, not unix://")
    rest = parts._replace(scheme=scheme, query=urlencode(query))
    url = urlunsplit(rest) if rest.netloc else f"{scheme}://" + urlunsplit(rest)[len(scheme) + 1 :]
    return url, is_cluster


def _public(url: str) -> str:
    """Where a server is, without user, password and options."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
