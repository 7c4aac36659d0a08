"""The gateway's configuration: read once, frozen, derived by property."""

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outfitter import urls
from outfitter.control.keep import Keep
from outfitter.control.limits import LimitsBook
from outfitter.control.prices import Prices
from outfitter.errors import InvalidLimits
from taskvectors.errors import InvalidReference
from taskvectors.spec import Reference
from taskvectors.store.settings import DISK, ORIGIN, REDIS, TIERS, TierSettings

LOG_FORMATS = ("text", "json")
PLACEMENTS = ("auto", "off")
EVER = "ever"
OPEN, KEYS = "open", "keys"
AUTHS = (OPEN, KEYS)
DTYPES = ("auto", "float32", "bfloat16", "float16")
ADMISSION_TIMEOUT_S = 30.0

# What the gateway itself tells the engine; a user who sets one of these means another gateway.
RESERVED_ENGINE_FLAGS = {
    "--model": "--model",
    "--served-model-name": "--name",
    "--uds": None,
    "--host": "--host",
    "--port": "--port",
    "--dtype": "--dtype",
    "--max-model-len": "--max-model-len",
    "--enable-lora": None,
    "--no-enable-lora": None,
    "--max-loras": "--slots",
    "--max-cpu-loras": "--slots",
    "--max-lora-rank": None,
    "--lora-modules": None,
    "--additional-config": None,
    "--api-key": None,
    "--root-path": None,
    "--ssl-keyfile": None,
    "--ssl-certfile": None,
    "--disable-fastapi-docs": None,
    "--config": None,
}

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2}
_UNITS |= {"g": 1000**3, "gb": 1000**3, "t": 1000**4, "tb": 1000**4}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_TIME_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class InvalidConfig(ValueError):
    """A setting has a value that cannot be used; the message names both and the choices."""


@dataclass(frozen=True)
class GatewayConfig:
    """Everything `outfitter serve` was told."""

    model: Path
    name: str
    store: Path
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "auto"
    slots: int = 64
    max_vectors: int = 64
    """How many vectors may be resident: columns of the coefficient table."""
    pool_bytes: int = 2 * 2**30
    composed_bytes: int = 8 * 2**30
    compose_memory_bytes: int = 8 * 2**30
    """Most memory of each composition, of which two may run; nothing is set aside for it."""
    placement: str = "off"
    """Whether hot loadouts are composed in the background where that pays."""
    compiles: bool = False
    """Whether the model is compiled; on a CPU."""
    tiers: TierSettings = field(default_factory=TierSettings)
    database_url: str | None = None
    """The catalog's database; SQLite in the store's folder when None."""
    pins: tuple[str, ...] = ()
    """References that are made resident at start and stay so."""
    pull_from: tuple[str, ...] = ()
    """URL prefixes that a client may name as a source; none by default."""
    allow_promotions: bool = False
    """Whether a client may change the resident base for everybody."""
    trust: Path | None = None
    """The file with the signature policy of each namespace."""
    auth: str | None = None
    """Whether clients need keys; None: unless only this machine can reach the gateway."""
    quarantine_bytes: int = 2**30
    max_upload_bytes: int = 4 * 2**30
    max_body_bytes: int = 32 * 2**20
    max_running: int = 1024
    """Requests in the engine at once; further ones wait, in turn by tenant."""
    max_waiting: int = 4096
    max_wait_s: float = 60.0
    limits: LimitsBook = field(default_factory=LimitsBook)
    """Of tenants that have none of their own."""
    prices: Prices = field(default_factory=Prices)
    """What experiments take tokens to cost."""
    max_model_len: int | None = None
    model_as_given: str | None = None
    """What --model said; clients may name the model so, as with vLLM itself."""
    drain_seconds: int = 30
    stall_seconds: int = 60
    """How long a client may take nothing of its answer until its connection is cut."""
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    proxy_headers: bool = False
    forwarded_allow_ips: str = "127.0.0.1"
    """Proxies whose X-Forwarded headers are believed where `proxy_headers` is set."""
    keep: Keep = field(default_factory=Keep)
    """How long it stays known who changed what, and which key used which loadout."""
    log_format: str = "text"
    access_log: bool = True
    """Whether each request is logged; changes of tenants, vectors and loadouts always are."""
    engine_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.dtype in DTYPES, "--dtype", self.dtype, f"choose {', '.join(DTYPES)}")
        choices = f"choose {', '.join(PLACEMENTS)}"
        _require(self.placement in PLACEMENTS, "--placement", self.placement, choices)
        formats = f"choose {', '.join(LOG_FORMATS)}"
        _require(self.log_format in LOG_FORMATS, "--log-format", self.log_format, formats)
        _require(1 <= self.slots <= 4096, "--slots", self.slots, "use 1 to 4096")
        _require(0 <= self.port <= 65535, "--port", self.port, "use 1 to 65535")
        _require(self.drain_seconds >= 0, "--drain-seconds", self.drain_seconds, "use 0 or more")
        for option, value in (
            ("--pool-bytes", self.pool_bytes),
            ("--composed-bytes", self.composed_bytes),
            ("--compose-memory", self.compose_memory_bytes),
            ("--max-upload-bytes", self.max_upload_bytes),
            ("--max-body-bytes", self.max_body_bytes),
            ("--max-running", self.max_running),
            ("--max-waiting", self.max_waiting + 1),
            ("--max-wait", self.max_wait_s),
            ("--max-model-len", self.max_model_len or 1),
            ("--quarantine-bytes", self.quarantine_bytes + 1),
        ):
            _require(value > 0, option, value, "use a positive number")
        for name, price in vars(self.prices).items():
            _require(0 <= price < 1e9, f"--price-{name}", price, "use 0 or more")
        for option, kept in (("--keep-uses", self.keep.uses), ("--keep-audit", self.keep.changes)):
            _require(kept is None or kept > 0, option, kept, "use a positive time, or ever")
        self._check_connections()
        check_state(self.database_url, self.tiers)
        self._check_auth()
        self._check_pins()
        self._check_pull_from()
        self._reject_reserved_flags()

    def _check_connections(self) -> None:
        stall = self.stall_seconds
        _require(1 <= stall <= 3600, "--stall-seconds", stall, "use 1 to 3600")
        for given, other, option, missing in (
            (self.ssl_certfile, self.ssl_keyfile, "--ssl-certfile", "--ssl-keyfile"),
            (self.ssl_keyfile, self.ssl_certfile, "--ssl-keyfile", "--ssl-certfile"),
        ):
            has_both = given is None or other is not None
            _require(has_both, option, str(given), f"it needs {missing}, too")
        for text in self.forwarded_allow_ips.split(","):
            advice = "use addresses or networks such as 10.0.0.0/8, or * for any"
            _require(_is_network(text.strip()), "--forwarded-allow-ips", text, advice)

    def _check_auth(self) -> None:
        choices = f"choose {', '.join(AUTHS)}"
        _require(self.auth is None or self.auth in AUTHS, "--auth", self.auth, choices)
        advice = (
            f"others can reach {self.host}: use --auth keys there, or --host 127.0.0.1; how to make"
            " keys: outfitter key create --help"
        )
        _require(self.auth != OPEN or self.is_loopback, "--auth", self.auth, advice)

    def _check_pins(self) -> None:
        for pin in self.pins:
            try:
                Reference.parse(pin)
            except InvalidReference as error:
                raise InvalidConfig(f"unsupported --pin {pin[:200]!r}; {error}") from error
        _require_distinct("--pin", self.pins)

    def _check_pull_from(self) -> None:
        for prefix in self.pull_from:
            problem = urls.pull_problem(prefix)
            _require(problem is None, "--allow-pull", urls.shown(prefix), problem)
        _require_distinct("--allow-pull", [urls.shown(prefix) for prefix in self.pull_from])

    def _reject_reserved_flags(self) -> None:
        for arg in self.engine_args:
            flag = arg.partition("=")[0].replace("_", "-")
            if flag in RESERVED_ENGINE_FLAGS:
                own = RESERVED_ENGINE_FLAGS[flag]
                advice = f"use outfitter's own {own}" if own else "it is set by outfitter"
                raise InvalidConfig(f"unsupported engine argument {flag!r}; {advice}")

    @property
    def served_names(self) -> tuple[str, ...]:
        """What clients may call the model; listings use the first, answers what was sent."""
        return tuple(dict.fromkeys([self.name, self.model_as_given or self.name]))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def asks_for_keys(self) -> bool:
        """Whether a request needs a key; in open mode whoever comes may do everything."""
        return self.auth == KEYS or (self.auth is None and not self.is_loopback)

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the gateway."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        scheme = "https" if self.ssl_certfile else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def cache_home() -> Path:
    """Outfitter's folder under the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "outfitter"


def check_state(database_url: str | None, tiers: TierSettings) -> None:
    """Raise InvalidConfig unless the catalog and the tiers can be where these say."""
    for option, url, problem_of in (
        ("--database-url", database_url, urls.database_problem),
        ("--redis-url", tiers.redis_url, urls.redis_problem),
        ("--origin", tiers.origin_url, urls.origin_problem),
    ):
        problem = problem_of(url) if url is not None else None
        _require(problem is None, option, urls.shown(url or ""), problem)
    prefix = tiers.redis_prefix
    advice = "use up to 64 letters, digits, '.', '_', ':' and '-'"
    _require(bool(_PREFIX.fullmatch(prefix)), "--redis-prefix", prefix, advice)
    _require(tiers.memory_bytes >= 0, "--host-bytes", tiers.memory_bytes, "use 0 or more")
    for option, value in (("--redis-bytes", tiers.redis_bytes), ("--redis-ttl", tiers.redis_ttl_s)):
        _require(value > 0, option, value, "use a positive number")
    _check_order(tiers)


def _check_order(tiers: TierSettings) -> None:
    order = ",".join(tiers.order)
    choices = f"choose from {','.join(TIERS)}, each once"
    for name in tiers.order:
        _require(name in TIERS, "--tiers", order, f"there is no tier {name[:80]!r}; {choices}")
    _require(len(set(tiers.order)) == len(tiers.order), "--tiers", order, choices)
    advice = "disk must be among them: it is where published files are"
    _require(DISK in tiers.order, "--tiers", order, advice)
    if tiers.order == TIERS:
        return
    for name, option, url in (
        (REDIS, "--redis-url", tiers.redis_url),
        (ORIGIN, "--origin", tiers.origin_url),
    ):
        advice = f"the tier {name!r} needs {option}"
        _require(name not in tiers.order or url is not None, "--tiers", order, advice)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return text == "*"
    return True


def _require(holds: bool, option: str, value: object, advice: str | None) -> None:
    if not holds:
        raise InvalidConfig(f"unsupported {option} {value!r}; {advice}")


def _require_distinct(option: str, values: Sequence[str]) -> None:
    twice = next((value for value in values if values.count(value) > 1), None)
    _require(twice is None, option, twice, "it is given twice")


def read_limits(path: Path | None) -> LimitsBook:
    """The limits in a YAML or JSON file, none without one; raises InvalidConfig."""
    import yaml  # type: ignore[import-untyped]  # slow to import

    if path is None:
        return LimitsBook()
    try:
        return LimitsBook.parse(yaml.safe_load(path.read_text("utf-8")))
    except (InvalidLimits, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InvalidConfig(f"unsupported --limits {str(path)!r}; {error}") from error


def parse_tiers(text: str) -> tuple[str, ...]:
    """`memory,redis,disk` as the order in which a load asks; checked by `check_state`."""
    return tuple(name.strip() for name in text.split(","))


def parse_seconds(text: str) -> float:
    """`90`, `30s`, `15m`, `1h` or `7d`, in seconds; raises InvalidConfig."""
    match = _SIZE.fullmatch(text.strip())
    unit = _TIME_UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise InvalidConfig(f"unsupported time {text!r}; use seconds or a unit such as 30s, 1h, 7d")
    return float(match[1]) * unit


def parse_age(text: str) -> float | None:
    """A time as of `parse_seconds`, or None for `ever`; raises InvalidConfig."""
    return None if text.strip().lower() == EVER else parse_seconds(text)


def parse_size(text: str) -> int:
    """`512MiB`, `2GiB`, `1.5GB` or a plain number of bytes; raises InvalidConfig."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise InvalidConfig(f"unsupported size {text!r}; use bytes or a unit such as 512MiB, 2GiB")
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def model_name(model: str, name: str | None) -> str:
    """The model name that clients use: given, else the folder's last part, else the repo id."""
    if name:
        return name
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
