"""Which signatures a namespace needs: off, warn or require, from a file that may be edited."""

import hashlib
import logging
import threading
import time
import tomllib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from outfitter.config import InvalidConfig
from outfitter.errors import UntrustedVector
from outfitter.trust import signatures
from outfitter.waiting import check_may_wait
from taskvectors.errors import InvalidReference
from taskvectors.spec import Reference

log = logging.getLogger(__name__)

POLICIES = ("off", "warn", "require")
MAX_POLICY = 1 << 20
"""Bytes of the file."""
MAX_REMEMBERED = 4096
RELOAD_S = 1.0
"""Seconds after which the files are looked at again: how long a revoked key may still count."""

Stamps = Mapping[Path, tuple[int, int, int] | None]


@dataclass(frozen=True)
class Rule:
    """What one namespace needs."""

    policy: str = "off"
    keys: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Rules:
    """The whole file. stamps: of it and its keys when they were read."""

    default: Rule = field(default_factory=Rule)
    namespaces: Mapping[str, Rule] = field(default_factory=dict)
    stamps: Stamps = field(default_factory=dict)

    def of(self, namespace: str) -> Rule:
        """The rule of a namespace; of names without one when it is empty."""
        return self.namespaces.get(namespace, self.default)


class Trust:
    """Checks signatures by the rules of a file. Safe in threads."""

    def __init__(self, path: Path | None, rules: Rules) -> None:
        self._path = path
        self._rules = rules
        self._seen = rules.stamps
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[tuple[str, str, str], str | None] = OrderedDict()
        self._warned: OrderedDict[str, None] = OrderedDict()

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read the policy file; without one nothing is checked. Raises InvalidConfig."""
        return cls(path, Rules() if path is None else _read(path))

    def check(self, name: str, digest: str, signature: str | None) -> None:
        """Raise UntrustedVector, or warn once a digest, as the name's namespace has it.

        What was found is remembered: every request may ask.
        """
        self._reload()
        namespace = name.rpartition("/")[0]
        rules = self._rules
        rule = rules.of(namespace)
        if rule.policy == "off":
            return
        problem = self._verdict(rules, namespace, digest, signature)
        if problem is None:
            return
        message = f"{name} is not trusted: {problem}"
        if rule.policy == "require":
            raise UntrustedVector(message)
        if self._is_first_warning(digest):
            log.warning("%s", message)

    def _verdict(
        self, rules: Rules, namespace: str, digest: str, signature: str | None
    ) -> str | None:
        """Why the file is not trusted; None when it is."""
        if signature is None:
            return "it has no signature; sign the file with `outfitter sign` and publish both"
        bundle = hashlib.sha256(signature.encode("utf-8", "replace")).hexdigest()
        key = (digest, bundle, namespace)
        with self._lock:
            seen = self._seen
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
                return self._verdicts[key]
        check_may_wait()
        problem = _problem(digest, signature, rules.of(namespace).keys)
        with self._lock:
            if seen is self._seen:  # else the keys changed meanwhile
                _remember(self._verdicts, key, problem)
        return problem

    def _is_first_warning(self, digest: str) -> bool:
        with self._lock:
            first = digest not in self._warned
            _remember(self._warned, digest, None)
        return first

    def _reload(self) -> None:
        """Take the file's new rules; a file that is wrong leaves the old ones in force.

        A key that is gone or changed counts no more in either case.
        """
        if self._path is None or time.monotonic() < self._looked + RELOAD_S:
            return
        check_may_wait()
        with self._lock:
            self._looked = time.monotonic()
            stamps = {path: _stamp(path) for path in (self._path, *self._seen)}
            if stamps == self._seen:
                return
            self._seen = stamps
            self._verdicts.clear()
            try:
                self._rules = _read(self._path)
            except InvalidConfig as error:
                log.error("the trust policy stays as it was: %s", error)
                return
            self._seen = self._rules.stamps
            self._warned.clear()
            log.info("the trust policy was read again from %s", self._path)


def _problem(digest: str, signature: str, keys: tuple[Path, ...]) -> str | None:
    try:
        signatures.verify(digest, signature, keys)
    except (UntrustedVector, InvalidConfig) as error:
        return str(error)
    return None


def _read(path: Path) -> Rules:
    """The rules of a policy file, checked; raises InvalidConfig."""
    stamp = _stamp(path)
    fields = _toml(path)
    _reject_unknown(fields, {"default", "namespaces"}, f"{path}")
    if "policy" not in _table(fields.get("default", {}), path, "default"):
        # else a file that is only half written could say that nothing is checked
        raise InvalidConfig(f"{path} has no policy in [default]; choose {', '.join(POLICIES)}")
    default = _rule(fields.get("default", {}), Rule(), path, "default")
    namespaces = {
        _namespace(name, path): _rule(value, default, path, f"namespaces.{name}")
        for name, value in _table(fields.get("namespaces", {}), path, "namespaces").items()
    }
    if stamp != _stamp(path):
        raise InvalidConfig(f"the trust policy {path} changed while it was read")
    stamps = {path: stamp}
    for rule in (default, *namespaces.values()):
        for key in rule.keys:
            stamps[key] = _stamp(key)
            signatures.check_public_key(key)
    return Rules(default, namespaces, stamps)


def _toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY + 1)
        if len(data) > MAX_POLICY:
            raise InvalidConfig(f"the trust policy {path} has more than {MAX_POLICY} bytes")
        return tomllib.loads(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidConfig):
            raise
        raise InvalidConfig(f"cannot read the trust policy {path}: {error}") from error


def _rule(value: object, default: Rule, path: Path, where: str) -> Rule:
    fields = _table(value, path, where)
    _reject_unknown(fields, {"policy", "keys"}, f"[{where}] of {path}")
    policy = fields.get("policy", default.policy)
    if policy not in POLICIES:
        raise InvalidConfig(
            f"unsupported policy {policy!r} in [{where}] of {path}; choose {', '.join(POLICIES)}"
        )
    keys = fields.get("keys")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(k, str) for k in keys)):
        raise InvalidConfig(f"keys in [{where}] of {path} must be a list of files")
    found = default.keys if keys is None else tuple(path.parent / key for key in keys)
    if policy != "off" and not found:
        raise InvalidConfig(
            f"[{where}] of {path} has policy = {policy!r} and no keys; name at least one public key"
        )
    return Rule(policy, found)


def _table(value: object, path: Path, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidConfig(f"{where} of {path} must be a table")
    return value


def _namespace(name: str, path: Path) -> str:
    try:
        Reference.parse(f"{name}/x")
    except InvalidReference as error:
        raise InvalidConfig(f"{name[:200]!r} in {path} is not a namespace") from error
    return name


def _reject_unknown(fields: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(fields.keys() - known):
        raise InvalidConfig(
            f"unknown setting {unknown[0][:200]!r} in {where}; choose {', '.join(sorted(known))}"
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever a file does; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _remember(known: OrderedDict[Any, Any], key: object, value: object) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > MAX_REMEMBERED:
        known.popitem(last=False)
