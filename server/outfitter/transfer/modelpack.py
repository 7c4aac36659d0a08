"""A version as an OCI artefact, in the words of the ModelPack specification.

The weight layer is the task vector file itself, so its digest is the file's. What is read is
hostile: sizes and digests are checked before anything is believed.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from outfitter.config import InvalidConfig
from outfitter.errors import SourceFailed
from outfitter.state.records import Details, Version
from outfitter.transfer.descriptors import FILEPATH, Descriptor, parse_json, texts_of
from outfitter.trust.cards import MAX_CARD, render
from outfitter.trust.details import merge_details
from outfitter.trust.signatures import MAX_BUNDLE

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
CARD = "application/vnd.cncf.model.doc.v1.raw"
SIGNATURE = "application/vnd.dev.sigstore.bundle.v0.3+json"

OPENCONTAINERS = "org.opencontainers.image"
LABELS = "outfitter.labels"
LANGUAGES = "outfitter.languages"
GENERATED = "outfitter.generated"
"""Of a card that was written for the artefact, and is not the version's own."""

README = "README.md"
MAX_MANIFEST = 4 << 20
"""Bytes; more than this no registry takes."""
MAX_CONFIG = 1 << 20
MAX_LAYERS = 64

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"(?:.*/)?([A-Za-z0-9][A-Za-z0-9._-]{0,95})", re.DOTALL)


@dataclass(frozen=True)
class Package:
    """What an artefact is made of. blobs: config, card and signature, by digest."""

    manifest: bytes
    weight: Descriptor
    blobs: Mapping[str, bytes]

    @property
    def descriptor(self) -> Descriptor:
        """Of the manifest."""
        return Descriptor.of(MANIFEST, self.manifest)


@dataclass(frozen=True)
class Contents:
    """What an artefact says. weight: where the task vector file is."""

    weight: Descriptor
    name: str | None
    details: Details
    signature: str | None


Read = Callable[[Descriptor], bytes]
"""The bytes of a small blob, their size and digest checked."""


def pack(version: Version) -> Package:
    """The same version is always the same bytes."""
    file_name = f"{_last(version.name)}.safetensors"
    facts = version.facts
    weight = Descriptor(WEIGHT, facts.digest, facts.size, {FILEPATH: file_name})
    card = render(version).encode()
    generated = {} if version.details.card is not None else {GENERATED: "true"}
    small = [(Descriptor.of(CARD, card, filepath=README, **generated), card)]
    if version.signature is not None:
        bundle = version.signature.encode()
        small.append((Descriptor.of(SIGNATURE, bundle, filepath=f"{file_name}.sig"), bundle))
    layers = [weight, *(descriptor for descriptor, _ in small)]
    config = _dumps(_config(version, layers))
    about = Descriptor.of(CONFIG, config)
    manifest = _dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": about.to_json(),
            "layers": [layer.to_json() for layer in layers],
            "annotations": _annotations(version),
        }
    )
    blobs = {about.digest: config, **{layer.digest: data for layer, data in small}}
    return Package(manifest, weight, blobs)


def unpack(manifest: bytes, read: Read) -> Contents:
    """What a manifest and its small blobs say; raises SourceFailed."""
    fields = parse_json(manifest, "the manifest")
    if (kind := fields.get("artifactType")) != ARTIFACT:
        raise SourceFailed(f"the artefact is a {str(kind)[:100]!r}, not a {ARTIFACT}")
    layers = _layers(fields.get("layers"))
    weights = [layer for layer in layers if layer.media_type == WEIGHT]
    if len(weights) != 1:
        raise SourceFailed(f"the artefact has {len(weights)} layers of {WEIGHT}; one is a vector")
    about = Descriptor.parse(fields.get("config"), "the config")
    config = parse_json(_read(read, about, MAX_CONFIG), "the config")
    described = config.get("descriptor")
    descriptor = described if isinstance(described, Mapping) else {}
    card = _text(read, _layer(layers, CARD, README), MAX_CARD)
    signature = _text(read, _layer(layers, SIGNATURE), MAX_BUNDLE)
    details = _details(descriptor, texts_of(fields.get("annotations")), card)
    return Contents(weights[0], _fitting(descriptor.get("name")), details, signature)


def check_tag(tag: str) -> str:
    """`tag`, if OCI knows such; raises InvalidConfig."""
    if not TAG.fullmatch(tag):
        raise InvalidConfig(
            f"invalid OCI tag {tag[:200]!r}: use up to 128 letters, digits, '_', '.' and '-'"
        )
    return tag


def default_tag(version: Version) -> str:
    """Such as `json-3`."""
    return f"{_last(version.name)}-{version.version}"


def _config(version: Version, layers: list[Descriptor]) -> dict[str, object]:
    details = version.details
    descriptor: dict[str, object] = {
        "createdAt": _time(version),
        "name": version.name,
        "version": str(version.version),
        "family": version.facts.base_name,
        "description": details.description,
        "licenses": [details.license] if details.license else None,
    }
    languages = sorted({text for text in details.languages if re.fullmatch("[a-z]{2}", text)})
    config: dict[str, object] = {"format": "safetensors"}
    if languages:
        config["capabilities"] = {"languages": languages}
    return {
        "descriptor": {key: value for key, value in descriptor.items() if value is not None},
        "config": config,
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{layer.digest}" for layer in layers]},
    }


def _annotations(version: Version) -> dict[str, str]:
    details = version.details
    found = {
        f"{OPENCONTAINERS}.created": _time(version),
        f"{OPENCONTAINERS}.title": version.name,
        f"{OPENCONTAINERS}.version": str(version.version),
        f"{OPENCONTAINERS}.licenses": details.license,
        f"{OPENCONTAINERS}.description": details.description,
        LABELS: json.dumps(details.labels, ensure_ascii=False) if details.labels else None,
        LANGUAGES: json.dumps(details.languages) if details.languages else None,
    }
    return {key: text for key, text in found.items() if text}


def _details(
    descriptor: Mapping[str, Any], annotations: Mapping[str, str], card: str | None
) -> Details:
    """What is wrong is left out with a warning, but for the card: publishing reads that."""
    licenses = descriptor.get("licenses")
    fields = {
        "license": licenses if isinstance(licenses, list) else None,
        "description": descriptor.get("description"),
        "language": annotations.get(LANGUAGES),
        "tags": annotations.get(LABELS),
    }
    found = merge_details(fields, Details())
    return Details(found.license, found.languages, found.description, card, found.labels)


def _layers(value: object) -> list[Descriptor]:
    if not isinstance(value, list) or len(value) > MAX_LAYERS:
        raise SourceFailed(f"the artefact must have a list of at most {MAX_LAYERS} layers")
    return [Descriptor.parse(layer, f"layer {index}") for index, layer in enumerate(value)]


def _layer(layers: list[Descriptor], media_type: str, path: str | None = None) -> Descriptor | None:
    """The first of a kind that is not generated; of a path, where others may have one too."""
    for layer in layers:
        fits = path is None or layer.annotations.get(FILEPATH) == path
        if fits and layer.media_type == media_type and GENERATED not in layer.annotations:
            return layer
    return None


def _text(read: Read, layer: Descriptor | None, most: int) -> str | None:
    return None if layer is None else _read(read, layer, most).decode("utf-8", "replace")


def _read(read: Read, descriptor: Descriptor, most: int) -> bytes:
    if descriptor.size > most:
        raise SourceFailed(
            f"a blob of {descriptor.media_type[:100]} has {descriptor.size} bytes; at most {most}"
            " are read"
        )
    return read(descriptor)


def _fitting(name: object) -> str | None:
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    return match[1] if match else None


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _time(version: Version) -> str:
    return datetime.fromtimestamp(version.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _dumps(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()
