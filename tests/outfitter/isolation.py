"""What the isolation matrix asks: for every route, requests that name what is another tenant's.

A request is asked twice: once with a reference to acme's, once with one to nothing. Whoever may not
see acme's must get the same answer. A route that is not declared here fails the matrix.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from outfitter.control.surface import NOT_OFFERED, ROUTES

ABSENT_DIGEST = "0" * 64
_PASSING = ("date", "content-length", "x-request-id")
TUS = {"tus-resumable": "1.0.0"}
BYTES = {"content-type": "application/offset+octet-stream"}


@dataclass(frozen=True)
class Twin:
    """A reference to what is acme's, and one of the same form to what nobody has."""

    theirs: str
    nothing: str


@dataclass(frozen=True)
class Ask:
    """A request that names a reference. make: path and options of it."""

    method: str
    make: Callable[[str], tuple[str, dict[str, Any]]]
    twins: str
    """Which twins: `vectors`, `names`, `loadouts`, `loadout_names`, `uploads`, `fresh`,
    `experiments`."""
    status: int = 404
    key: str = "umbra"


@dataclass(frozen=True)
class Only:
    """A route that tells nothing of anybody to these keys: statuses by the scope they lack."""

    scope: str


@dataclass(frozen=True)
class NotOffered:
    """A route that says that there is no such thing here."""


@dataclass(frozen=True)
class Nobodys:
    """A route that names nobody's things: what it answers must hold nothing of acme's."""

    path: str
    options: dict[str, Any] = field(default_factory=dict)
    key: str | None = "umbra"


def completion(task_vectors: object) -> dict[str, Any]:
    return {"json": {"model": "base-model", "prompt": "hi", "task_vectors": task_vectors}}


def chat(task_vectors: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    return {"json": {"model": "base-model", "messages": messages, "task_vectors": task_vectors}}


def at(path: str, **options: Any) -> Callable[[str], tuple[str, dict[str, Any]]]:
    """A path with the reference in it."""
    return lambda reference: (path.replace("*", reference), options)


def by(path: str, make: Callable[[str], dict[str, Any]]) -> Callable:
    """A path with the reference in the body or in the query."""
    return lambda reference: (path, make(reference))


def tested(reference: str) -> dict[str, Any]:
    """An experiment as the model of any route, whose variant a tester wants to choose."""
    forced = {"x-outfitter-force-variant": "b"}
    return {"json": {"model": f"exp:{reference}", "user": "u"}, "headers": forced}


def listed(**extra: Any) -> Callable[[str], dict[str, Any]]:
    return lambda reference: {"json": {"task_vectors": ["mine", reference], **extra}}


def mixed(reference: str) -> dict[str, Any]:
    return {"json": {"model": "base-model", "task_vectors": {reference: 1.0}}}


def tasked(method: str, task: str) -> dict[str, Any]:
    """A method with a parameter that names a vector."""
    vectors = {"umbra/mine": 1.0, "mine": 1.0}
    return completion({"vectors": vectors, "method": method, "task": task})


def named(name: str) -> dict[str, Any]:
    return {"json": {"name": name, "task_vectors": {"umbra/mine": 1}}}


def experiment(name: str, reference: object = None, **model: str) -> dict[str, Any]:
    """A definition whose control names a reference."""
    mix = model or {"task_vectors": {str(reference or "mine"): 1}}
    other = {"key": "b", "task_vectors": {"umbra/mine": 1}}
    return {"json": {"name": name, "variants": [{"key": "a", **mix}, other]}}


def rated(request_id: str) -> dict[str, Any]:
    return {"json": {"request_id": request_id, "metric": "helpful", "value": 1}}


ONE = {"umbra/mine": 1.0}
ADMIN, OPERATE = Only("admin"), Only("operate")
T, L, P = "/v1/task_vectors", "/v1/loadouts", "/v1/promotions"
X = "/v1/experiments"
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"

MATRIX: dict[tuple[str, str], list[Ask | Only | Nobodys]] = {
    ("GET", "/health/live"): [Nobodys("/health/live", key=None)],
    ("GET", "/health/ready"): [Nobodys("/health/ready", key=None)],
    ("GET", "/metrics"): [OPERATE, Nobodys("/metrics", key="umbra__ops")],
    ("GET", "/v1/store/stats"): [OPERATE, Nobodys("/v1/store/stats", key="umbra__ops")],
    ("POST", "/v1/store/gc"): [OPERATE],
    ("POST", CHAT): [
        Ask("POST", by(CHAT, lambda r: chat({r: 1.0})), "vectors"),
        Ask("POST", by(CHAT, lambda r: chat([{"name": r, "weight": 1}])), "vectors"),
        Ask("POST", by(CHAT, lambda r: {"json": {"model": r, "messages": []}}), "loadouts"),
        Ask("POST", by(CHAT, tested), "experiments"),
    ],
    ("POST", COMPLETE): [
        Ask("POST", by(COMPLETE, lambda r: completion({**ONE, r: -1.0})), "vectors"),
        Ask("POST", by(COMPLETE, lambda r: {"json": {"model": r, "prompt": "x"}}), "loadouts"),
        Ask("POST", by(COMPLETE, tested), "experiments"),
        Ask(
            "POST",
            by(COMPLETE, lambda r: completion({"vectors": {r: 1.0}, "method": "ties"})),
            "vectors",
        ),
        Ask(
            "POST",
            by(
                COMPLETE,
                lambda r: completion({"vectors": {**ONE, r: 1.0}, "method": "sce"}),
            ),
            "vectors",
        ),
        *(
            Ask("POST", by(COMPLETE, lambda r, m=method: tasked(m, r)), "vectors")
            for method in ("tall_masks", "emr")
        ),
    ],
    **{
        ("POST", route.path): [
            Ask("POST", by(route.path, lambda r: {"json": {"model": r}}), "loadouts"),
            Ask("POST", by(route.path, tested), "experiments"),
            *(
                ()
                if route.is_tokens
                else (Ask("POST", by(route.path, lambda r: mixed(r)), "vectors"),)
            ),
        ]
        for route in ROUTES
        if route.path not in (CHAT, COMPLETE)
    },
    **{
        (method, path): [NotOffered()]
        for path in NOT_OFFERED
        for method in ("GET", "POST", "DELETE", "PUT", "PATCH")
    },
    ("PATCH", f"{L}/{{name:path}}"): [
        Ask("PATCH", at(f"{L}/*", json={"latest": 1}), "loadout_names"),
        Ask("PATCH", at(f"{L}/*", json={"latest": 9}), "loadout_names"),
    ],
    ("GET", "/v1/models"): [Nobodys("/v1/models")],
    ("GET", "/v1/models/{model:path}"): [
        Ask("GET", at("/v1/models/*"), "loadouts"),
        Ask("GET", at("/v1/models/exp:*"), "experiments"),
    ],
    ("GET", f"{T}/{{name:path}}/access"): [Ask("GET", at(f"{T}/*/access"), "names")],
    ("PUT", f"{T}/{{name:path}}/access"): [
        Ask("PUT", at(f"{T}/*/access", json={"visibility": "public"}), "names"),
    ],
    ("GET", f"{L}/{{name:path}}/access"): [Ask("GET", at(f"{L}/*/access"), "loadout_names")],
    ("PUT", f"{L}/{{name:path}}/access"): [
        Ask("PUT", at(f"{L}/*/access", json={"shared_with": ["umbra"]}), "loadout_names"),
    ],
    ("POST", L): [
        Ask("POST", by(L, lambda r: named_vector(r)), "vectors"),
        Ask("POST", by(L, named), "fresh", 403),
    ],
    ("GET", L): [
        Nobodys(L),
        Ask("GET", by(L, lambda r: {"params": {"name": r}}), "loadout_names"),
    ],
    ("GET", f"{L}/{{reference:path}}"): [Ask("GET", at(f"{L}/*"), "loadouts")],
    ("DELETE", f"{L}/{{reference:path}}"): [Ask("DELETE", at(f"{L}/*"), "loadouts")],
    ("GET", f"{X}/{{name:path}}/access"): [Ask("GET", at(f"{X}/*/access"), "experiments")],
    ("PUT", f"{X}/{{name:path}}/access"): [
        Ask("PUT", at(f"{X}/*/access", json={"visibility": "public"}), "experiments"),
    ],
    ("POST", X): [
        Ask("POST", by(X, lambda r: experiment("umbra/new", r)), "vectors"),
        Ask("POST", by(X, lambda r: experiment("umbra/new", model=r)), "loadouts"),
        Ask("POST", by(X, experiment), "fresh", 403),
    ],
    ("GET", X): [Nobodys(X), Nobodys(X, {"params": {"status": "draft"}})],
    ("GET", f"{X}/{{name:path}}"): [Ask("GET", at(f"{X}/*"), "experiments")],
    ("PATCH", f"{X}/{{name:path}}"): [
        Ask("PATCH", at(f"{X}/*", json={"hypothesis": "x"}), "experiments"),
        Ask("PATCH", at(f"{X}/*", json={"version": 9, "alpha": 7}), "experiments"),
    ],
    ("DELETE", f"{X}/{{name:path}}"): [Ask("DELETE", at(f"{X}/*"), "experiments")],
    **{
        ("POST", f"{X}/{{name:path}}/{action}"): [
            Ask("POST", at(f"{X}/*/{action}", json=body), "experiments")
            for body in ({**more}, {"version": 9, **more})
        ]
        for action, more in (
            *(("start", {}), ("pause", {}), ("stop", {})),
            ("ship", {"variant": "b", "as": "umbra/bot"}),
            ("veto", {"act": "rollback"}),
        )
    },
    **{
        ("GET", f"{X}/{{name:path}}/{part}"): [Ask("GET", at(f"{X}/*/{part}"), "experiments")]
        for part in ("versions", "growthbook", "results", "events")
    },
    ("POST", P): [
        OPERATE,
        Ask(
            "POST", by(P, lambda r: {"json": {"task_vectors": {r: 1}}}), "vectors", key="umbra__ops"
        ),
        Ask("POST", by(P, lambda r: {"json": {"loadout": r}}), "loadouts", key="umbra__ops"),
    ],
    ("GET", P): [OPERATE, Nobodys(P, key="umbra__ops")],
    ("DELETE", P): [OPERATE],
    ("POST", "/v1/uploads"): [
        Nobodys("/v1/uploads", {"headers": {**TUS, "upload-length": "5"}, "method": "POST"})
    ],
    ("OPTIONS", "/v1/uploads"): [Nobodys("/v1/uploads", {"method": "OPTIONS"})],
    ("OPTIONS", "/v1/uploads/{upload_id}"): [
        Ask("OPTIONS", at("/v1/uploads/*"), "uploads", 204),
    ],
    ("HEAD", "/v1/uploads/{upload_id}"): [Ask("HEAD", at("/v1/uploads/*", headers=TUS), "uploads")],
    ("PATCH", "/v1/uploads/{upload_id}"): [
        Ask(
            "PATCH",
            at("/v1/uploads/*", headers={**TUS, **BYTES, "upload-offset": offset}, content=b"1"),
            "uploads",
        )
        for offset in ("0", "3")
    ],
    ("DELETE", "/v1/uploads/{upload_id}"): [
        Ask("DELETE", at("/v1/uploads/*", headers=TUS), "uploads")
    ],
    ("POST", f"{T}/interference"): [
        Ask("POST", by(f"{T}/interference", listed(per_layer=True)), "vectors"),
        Ask(
            "POST",
            by(f"{T}/interference", lambda r: {"json": {"task_vectors": [r, "mine"]}}),
            "vectors",
        ),
    ],
    ("POST", f"{T}/pulls"): [
        Ask(
            "POST",
            by(f"{T}/pulls", lambda r: {"json": {"name": r, "source": "s3://a/b.safetensors"}}),
            "fresh",
            403,
        ),
    ],
    **{
        (method, f"{T}/{{reference:path}}/{part}"): [
            Ask(method, at(f"{T}/*/{part}"), "vectors"),
            Ask(method, at(f"{T}/*/{part}", headers={"if-none-match": "*"}), "vectors"),
            Ask(method, at(f"{T}/*/{part}", headers={"range": "bytes=0-1"}), "vectors"),
        ]
        for method in ("GET", "HEAD")
        for part in ("file", "card", "signature")
    },
    ("POST", T): [
        Ask("POST", by(T, lambda r: {"params": {"name": r}, "content": b"x"}), "fresh", 403),
        Ask(
            "POST",
            by(T, lambda r: {"params": {"upload": r}, "json": {"name": "umbra/new"}}),
            "uploads",
        ),
        Ask(
            "POST",
            by(T, lambda r: {"params": {"upload": ABSENT_DIGEST[:32]}, "json": {"name": r}}),
            "fresh",
            403,
        ),
    ],
    ("GET", T): [
        Nobodys(T),
        Nobodys(T, {"params": {"versions": "all", "order": "-created"}}),
        Nobodys(T, {"params": {"versions": "all", "order": "-size"}}),
        Nobodys(T, {"params": {"order": "-downloads"}}),
        Nobodys(T, {"params": {"q": "zebra"}}),
        Nobodys(T, {"params": {"namespace": "acme"}}),
        Nobodys(T, {"params": {"name": "acme/zebra", "versions": "all"}}),
        Nobodys(T, {"params": {"tag": "stable"}}),
        Nobodys(T, {"params": {"label": "quagga"}}),
        Nobodys(T, {"params": {"license": "MIT"}}),
    ],
    ("PUT", f"{T}/{{name:path}}/tags/{{tag}}"): [
        Ask("PUT", at(f"{T}/*/tags/mine", json={"version": 1}), "names"),
    ],
    ("DELETE", f"{T}/{{name:path}}/tags/{{tag}}"): [
        Ask("DELETE", at(f"{T}/*/tags/stable"), "names"),
        Ask("DELETE", at(f"{T}/*/tags/none"), "names"),
    ],
    ("GET", f"{T}/{{reference:path}}"): [Ask("GET", at(f"{T}/*"), "vectors")],
    ("PATCH", f"{T}/{{reference:path}}"): [
        Ask("PATCH", at(f"{T}/*", json={"description": "x"}), "vectors"),
        Ask("PATCH", at(f"{T}/*", json={}), "vectors"),
    ],
    ("DELETE", f"{T}/{{reference:path}}"): [Ask("DELETE", at(f"{T}/*"), "vectors")],
    ("POST", "/v1/tenants"): [ADMIN],
    ("GET", "/v1/tenants"): [ADMIN],
    **{
        (method, f"/v1/tenants/{{tenant}}{rest}"): [ADMIN]
        for method, rest in (
            *(("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/limits"), ("PATCH", "/limits")),
            *(("PUT", "/namespaces/{namespace}"), ("DELETE", "/namespaces/{namespace}")),
            *(("POST", "/keys"), ("GET", "/keys"), ("POST", "/keys/{key_id}/rotate")),
            ("DELETE", "/keys/{key_id}"),
        )
    },
    ("GET", "/v1/usage"): [Nobodys("/v1/usage?group_by=day,tenant,model")],
    ("POST", "/v1/feedback"): [
        Ask("POST", by("/v1/feedback", rated), "requests", 200),
    ],
    ("GET", "/v1/audit"): [ADMIN],
    ("GET", "/v1/audit/loadouts"): [ADMIN],
}


def named_vector(reference: str) -> dict[str, Any]:
    return {"json": {"name": "umbra/bot", "task_vectors": {reference: 1.0}}}


def cases(kind: type) -> Iterator[tuple[str, Any]]:
    """Every declared case of a kind, with what a test calls it."""
    for (method, path), asks in MATRIX.items():
        for number, ask in enumerate(asks):
            if isinstance(ask, kind):
                yield f"{method} {path} {number}", ask


def comparable(response: httpx.Response, reference: str) -> tuple[int, str, dict[str, str]]:
    """An answer without what differs anyhow: the reference that was sent, and the time."""
    headers = {k: v for k, v in response.headers.items() if k not in _PASSING}
    text = response.text
    for part in (json.dumps(reference)[1:-1], *without_pin(reference)):
        text = text.replace(part, "<sent>")
    return response.status_code, text, headers


def without_pin(reference: str) -> tuple[str, ...]:
    """The name and the digest in a reference, as messages say them."""
    path, _, pin = reference.partition("@")
    return tuple(part for part in (path, pin) if len(part) > 3)
