"""Changes of the catalog, told to other replicas and heard from them: Redis pub/sub, if any.

Nothing depends on a message: whoever hears none reads the catalog's generation often enough.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing

import redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.retry import Retry

log = logging.getLogger(__name__)

Heard = Callable[[int | None], None]
"""Told the generation that somebody announced; None when messages may have been missed."""

TIMEOUT_S = 1.0
PING_AFTER_S = 5.0
"""A subscription that is silent for so long is asked for a sign of life, and has as long again."""
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0


class Changes:
    """Speaks on `<prefix>:changes`. Without a URL it neither tells nor hears anything.

    It never raises: Redis may be absent, wrong or hang. One daemon thread listens.
    """

    def __init__(self, url: str | None, prefix: str) -> None:
        self.channel = f"{prefix}:changes"
        self.is_connected = False
        self._url = url
        self._closed = threading.Event()
        self._is_told_lost = False
        self._client = _client(url) if url is not None else None
        self._heard: Heard = lambda generation: None  # noqa: ARG005

    @property
    def is_configured(self) -> bool:
        """Whether there is a Redis to speak through."""
        return self._client is not None

    def listen(self, heard: Heard) -> None:
        """Tell `heard` of every change, from a thread, until closed."""
        self._heard = heard
        if self._client is not None:
            threading.Thread(target=self._listen, name="changes", daemon=True).start()

    def publish(self, generation: int) -> None:
        """Tell the others, unless the subscription says that nobody can hear."""
        if self._client is None or not self.is_connected:
            return
        try:
            self._client.publish(self.channel, generation)
        except (redis.RedisError, OSError, ValueError) as error:
            log.debug("generation %d was not announced: %s", generation, error)

    def close(self) -> None:
        """Stop listening; the thread ends within TIMEOUT_S."""
        self._closed.set()
        if self._client is not None:
            self._client.close()

    def _listen(self) -> None:
        backoff = FIRST_BACKOFF_S
        while not self._closed.is_set():
            started = time.monotonic()
            try:
                self._hear_until_lost()
            except (redis.RedisError, OSError, ValueError) as error:
                self._tell_lost(error)
            self.is_connected = False
            if time.monotonic() - started > MAX_BACKOFF_S:
                backoff = FIRST_BACKOFF_S
            self._closed.wait(backoff * random.uniform(0.5, 1.0))  # noqa: S311
            backoff = min(2 * backoff, MAX_BACKOFF_S)

    def _hear_until_lost(self) -> None:
        """Raises RedisError, OSError."""
        assert self._url is not None
        with closing(_client(self._url)) as client, closing(_subscription(client)) as subscription:
            subscription.subscribe(self.channel)
            silent_since, is_pinged = time.monotonic(), False
            while not self._closed.is_set():
                if self._take(subscription):
                    silent_since, is_pinged = time.monotonic(), False
                elif time.monotonic() - silent_since > 2 * PING_AFTER_S:
                    raise redis.TimeoutError(f"no sign of life for {2 * PING_AFTER_S:g} s")
                elif time.monotonic() - silent_since > PING_AFTER_S and not is_pinged:
                    subscription.ping()
                    is_pinged = True

    def _take(self, subscription: PubSub) -> bool:
        """Whether a message came within TIMEOUT_S, and was passed on."""
        message = subscription.get_message(timeout=TIMEOUT_S)
        if message is None:
            return False
        if message["type"] == "subscribe":
            self._tell_back()
            self._heard(None)
        elif message["type"] == "message":
            self._heard(_generation(message["data"]))
        return True

    def _tell_lost(self, error: Exception) -> None:
        if not self._is_told_lost and not self._closed.is_set():
            log.warning(
                "no messages about changes from Redis (%s); the catalog is asked instead", error
            )
        self._is_told_lost = True

    def _tell_back(self) -> None:
        self.is_connected = True
        if self._is_told_lost:
            log.info("messages about changes come again")
        self._is_told_lost = False


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def _subscription(client: redis.Redis) -> PubSub:
    return client.pubsub()  # type: ignore[no-any-return, no-untyped-call]


def _generation(data: object) -> int | None:
    """Anybody may write on the channel: what is no number may mean any change."""
    text = data if isinstance(data, bytes) else b""
    return int(text) if len(text) < 20 and text.isdigit() else None
