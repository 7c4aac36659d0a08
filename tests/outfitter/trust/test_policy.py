"""A policy decides per namespace; what it says can change while the server runs."""

import logging
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from outfitter.config import InvalidConfig
from outfitter.errors import UntrustedVector
from outfitter.trust import policy, signatures
from outfitter.trust.policy import Trust
from outfitter.waiting import WouldWait, at_once
from tests.outfitter.trust.conftest import Signed

RULES = """
[default]
policy = "warn"
keys = ["other.pub"]

[namespaces.acme]
policy = "require"
keys = ["acme.pub"]

[namespaces.lab]
policy = "off"
"""

OFF = '[default]\npolicy = "off"\n'


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "RELOAD_S", 0.0)


def _write(signed: Signed, text: str = RULES) -> Path:
    path = signed.folder / "trust.toml"
    path.write_text(text)
    return path


def test_without_a_policy_nothing_is_checked() -> None:
    """Also no bundle is read."""
    Trust.load(None).check("acme/json", "ab" * 32, "no bundle at all")


def test_a_signed_vector_of_a_namespace_passes(signed: Signed) -> None:
    """And an unsigned one, or one that somebody else signed, does not."""
    trust = Trust.load(_write(signed))
    trust.check("acme/json", signed.digest, signed.bundle)
    with pytest.raises(UntrustedVector, match=r"acme/json is not trusted: it has no signature"):
        trust.check("acme/json", signed.digest, None)
    with pytest.raises(UntrustedVector, match=r"acme\.pub: another key signed it"):
        trust.check("acme/json", signed.digest, signed.bundle_of(signed.file.read_bytes(), "other"))
    with pytest.raises(UntrustedVector, match="is of another file"):
        trust.check("acme/json", "ab" * 32, signed.bundle)


def test_keys_count_for_their_namespace_only(signed: Signed) -> None:
    """What was found for one namespace is not remembered for another."""
    rules = RULES + '[namespaces.beta]\npolicy = "require"\nkeys = ["other.pub"]\n'
    trust = Trust.load(_write(signed, rules))
    trust.check("acme/json", signed.digest, signed.bundle)
    with pytest.raises(UntrustedVector):
        trust.check("beta/json", signed.digest, signed.bundle)


def test_a_warning_is_given_once(signed: Signed, caplog: pytest.LogCaptureFixture) -> None:
    """For each file, not for each request; names without a namespace have the default."""
    trust = Trust.load(_write(signed))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            trust.check("json", signed.digest, None)
            trust.check("json", "ab" * 32, "{}")
            trust.check("lab/json", "cd" * 32, None)
    assert [record.getMessage()[:20] for record in caplog.records] == ["json is not trusted:"] * 2


def test_what_was_found_is_remembered(signed: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good bundle and a bad one are verified once, however many threads ask later."""
    asked: list[str] = []
    verify = signatures.verify

    def counted(digest: str, bundle: str, keys: tuple[Path, ...]) -> Path:
        asked.append(bundle)
        return verify(digest, bundle, keys)

    monkeypatch.setattr(signatures, "verify", counted)
    trust = Trust.load(_write(signed))
    for bundle in (signed.bundle, "{}"):
        for _ in range(5):
            try:
                trust.check("acme/json", signed.digest, bundle)
            except UntrustedVector:
                assert bundle == "{}"
    assert asked == [signed.bundle, "{}"]


def test_what_is_remembered_is_bounded(signed: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody fills the memory with bundles."""
    monkeypatch.setattr(policy, "MAX_REMEMBERED", 4)
    trust = Trust.load(_write(signed))
    for number in range(20):
        with pytest.raises(UntrustedVector):
            trust.check("acme/json", signed.digest, f"{number}")
        trust.check("json", f"{number:064x}", None)
    assert len(trust._verdicts) == 4
    assert len(trust._warned) == 4


def test_a_revoked_key_counts_without_a_restart(signed: Signed) -> None:
    """Also what was remembered is forgotten."""
    path = _write(signed)
    trust = Trust.load(path)
    trust.check("acme/json", signed.digest, signed.bundle)
    _write(signed, RULES.replace('["acme.pub"]', '["other.pub"]'))
    with pytest.raises(UntrustedVector):
        trust.check("acme/json", signed.digest, signed.bundle)


def test_a_replaced_key_counts_without_a_restart(signed: Signed) -> None:
    """The policy file itself need not change."""
    trust = Trust.load(_write(signed))
    trust.check("acme/json", signed.digest, signed.bundle)
    signatures.generate(signed.folder / "new.key", signed.folder / "new.pub")
    os.replace(signed.folder / "new.pub", signed.acme)
    with pytest.raises(UntrustedVector, match="another key"):
        trust.check("acme/json", signed.digest, signed.bundle)


def test_a_deleted_key_counts_no_more(signed: Signed) -> None:
    """Though the policy that names it is now one that cannot be read."""
    trust = Trust.load(_write(signed))
    trust.check("acme/json", signed.digest, signed.bundle)
    signed.acme.unlink()
    with pytest.raises(UntrustedVector, match=r"cannot use .*acme\.pub"):
        trust.check("acme/json", signed.digest, signed.bundle)


@pytest.mark.parametrize("broken", ["not toml", "", "gone"])
def test_a_broken_edit_never_opens_the_door(
    signed: Signed, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The rules before it stay, and the log says so once; the next good edit counts."""
    path = _write(signed)
    trust = Trust.load(path)
    if broken == "gone":
        path.unlink()
    else:
        path.write_text(broken)
    for _ in range(3):
        with pytest.raises(UntrustedVector):
            trust.check("acme/json", "ab" * 32, signed.bundle)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    path.write_text(OFF)
    trust.check("acme/json", "ab" * 32, None)


def test_the_files_are_not_looked_at_for_every_request(
    signed: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only once in a while."""
    monkeypatch.setattr(policy, "RELOAD_S", 3600.0)
    path = _write(signed)
    trust = Trust.load(path)
    path.unlink()
    monkeypatch.setattr(policy, "_stamp", None)
    trust.check("acme/json", signed.digest, signed.bundle)


def test_many_threads_agree(signed: Signed) -> None:
    """While the file changes back and forth, a file that nobody signed is never trusted."""
    path = _write(signed)
    trust = Trust.load(path)
    wrong: list[str] = []
    stop = time.monotonic() + 1.0

    def ask() -> None:
        while time.monotonic() < stop:
            try:
                trust.check("acme/json", "ab" * 32, signed.bundle)
                wrong.append("trusted")
            except UntrustedVector:
                pass

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        _write(signed, RULES + "#" * number)
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = [", "cannot read the trust policy"),
        ("[defaults]", "unknown setting 'defaults'"),
        ('[default]\npolicy = "requier"', "unsupported policy 'requier'.*off, warn, require"),
        ("[default]\npolicy = []", "unsupported policy"),
        ('[default]\npolicy = "require"', "no keys"),
        ("", r"no policy in \[default\]"),
        ('[namespaces.acme]\npolicy = "off"', r"no policy in \[default\]"),
        (f'{OFF}[namespaces.acme]\npolicy = "warn"', r"\[namespaces.acme\].*no keys"),
        (f'{OFF}keys = "acme.pub"', "list of files"),
        (f'{OFF}keys = ["gone.pub"]', "gone.pub as a public key"),
        (f'{OFF}keys = ["acme.key"]', "acme.key as a public key"),
        (f'{OFF}key = ["acme.pub"]', "unknown setting 'key'"),
        (f'{OFF}[namespaces]\nacme = "require"', "must be a table"),
        (f'namespaces = "acme"\n{OFF}', "must be a table"),
        (f'{OFF}[namespaces."a/b/c"]\npolicy = "off"', "not a namespace"),
        ("#" * (policy.MAX_POLICY + 1), "more than"),
    ],
)
def test_a_wrong_policy_is_refused_at_start(signed: Signed, text: str, why: str) -> None:
    """The message names the file and the setting."""
    with pytest.raises(InvalidConfig, match=f"(?s){why}") as caught:
        Trust.load(_write(signed, text))
    assert "trust.toml" in str(caught.value) or "public key" in str(caught.value)


def test_a_policy_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Rather than trusting everybody."""
    with pytest.raises(InvalidConfig, match="cannot read the trust policy"):
        Trust.load(tmp_path / "gone.toml")


def test_a_policy_without_its_library_is_refused(
    signed: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At start, not at the first request; one that is off needs none."""
    for name in ("model_signing", "model_signing.signing", "model_signing.verifying"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidConfig, match=r"outfitter\[signing\]"):
        Trust.load(_write(signed))
    Trust.load(_write(signed, OFF))


def test_a_signature_is_not_verified_where_nobody_may_wait(
    signed: Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are files looked at; what was found before is known at once."""
    monkeypatch.setattr(policy, "RELOAD_S", 3600.0)
    trust = Trust.load(_write(signed))
    with pytest.raises(WouldWait):
        at_once(lambda: trust.check("acme/json", signed.digest, signed.bundle))
    trust.check("acme/json", signed.digest, signed.bundle)
    at_once(lambda: trust.check("acme/json", signed.digest, signed.bundle))
    monkeypatch.setattr(policy, "RELOAD_S", 0.0)
    with pytest.raises(WouldWait):
        at_once(lambda: trust.check("acme/json", signed.digest, signed.bundle))
