"""What an operator allows: no spelling of a URL gets round it."""

from pathlib import Path

import pytest

from outfitter.errors import SourceNotAllowed
from outfitter.transfer.allowed import Allowed
from outfitter.transfer.locations import Location
from outfitter.transfer.sources import fetch
from taskvectors.errors import InvalidReference
from tests.outfitter.harness import make_vector

PREFIXES = (
    "https://good.example/team",
    "https://files.example:8443/",
    "hf://acme",
    "hf://other/repo",
    "s3://bucket/team/",
    "outfitter://peer.example/acme",
    "oci://registry.example/team/vectors",
)

COVERED = (
    "https://good.example/team/v.safetensors",
    "https://good.example/team",
    "https://good.example:443/team/v@3",
    "https://good.example/team/v.safetensors?X-Amz-Signature=1",
    "HTTPS://GOOD.example/team/v.safetensors",
    "https://files.example:8443/any/v.safetensors",
    "hf://acme/repo",
    "hf://acme/repo@main/a/b.safetensors",
    "hf://other/repo@refs/pr/1/b.safetensors",
    "s3://bucket/team/a/v.safetensors",
    "outfitter://peer.example/acme/json@stable",
    "oci://registry.example/team/vectors:v1",
)

ATTACKS = (
    # another host that begins, ends or looks like the allowed one
    "https://good.example.evil.example/team/v.safetensors",
    "https://evilgood.example/team/v.safetensors",
    "https://good.example./team/v.safetensors",
    "https://evil.example/https://good.example/team/v.safetensors",
    "https://gооd.example/team/v.safetensors",
    "https://good。example/team/v.safetensors",
    "https:////good.example/team/v.safetensors",
    "https:good.example/team/v.safetensors",
    "https:///good.example/team/v.safetensors",
    # user and password
    "https://good.example@evil.example/team/v.safetensors",
    "https://good.example:443@evil.example/team/v.safetensors",
    "https://good.example%2Fteam@evil.example/v.safetensors",
    "https://user:secret@good.example/team/v.safetensors",
    "https://good.example\\@evil.example/team/v.safetensors",
    "https://evil.example\\.good.example/team/v.safetensors",
    "https://evil.example#@good.example/team/v.safetensors",
    "https://evil.example?@good.example/team/v.safetensors",
    # another port or scheme
    "https://good.example:8443/team/v.safetensors",
    "http://good.example/team/v.safetensors",
    "http://good.example:443/team/v.safetensors",
    "https://good.example:99999/team/v.safetensors",
    "https://files.example/any/v.safetensors",
    "outfitter://good.example/team/v",
    "s3://good.example/team/v.safetensors",
    # out of the folder
    "https://good.example/team/../v.safetensors",
    "https://good.example/team/%2e%2e/v.safetensors",
    "https://good.example/team/%252e%252e/v.safetensors",
    "https://good.example/team/.%2E/v.safetensors",
    "https://good.example/team/..%2fother/v.safetensors",
    "https://good.example/team%2F..%2Fother/v.safetensors",
    "https://good.example/team/..%5cother/v.safetensors",
    "https://good.example/team/..\\other\\v.safetensors",
    "https://good.example/team//../v.safetensors",
    "https://good.example/./team/v.safetensors",
    "https://good.example//team/v.safetensors",
    "https://good.example/other/../team/v.safetensors",
    "s3://bucket/team/../other/v.safetensors",
    # beside the folder: a prefix ends where a part of the path ends
    "https://good.example/teamster/v.safetensors",
    "https://good.example/team.safetensors",
    "https://good.example/team@evil/v.safetensors",
    "https://good.example/team@evil.safetensors",
    "https://good.example/Team/v.safetensors",
    "https://good.example/%74eam/v.safetensors",
    "https://good.example/team;a/v.safetensors",
    "s3://bucket/team@evil/v.safetensors",
    "s3://bucket/teams/v.safetensors",
    "s3://bucket-evil/team/v.safetensors",
    "s3://Bucket/team/v.safetensors",
    "hf://acme-evil/repo",
    "hf://Acme/repo",
    "hf://other/repo2",
    "hf://other@evil/repo",
    "hf://acme@evil/repo",
    "outfitter://peer.example/acmee/json",
    "outfitter://peer.example:8000/acme/json",
    "oci://registry.example/team/vectors2:v1",
    "oci://registry.example:5000/team/vectors:v1",
    # two sources in one, or another way of reading them
    "simplecache::s3://bucket/team/v.safetensors",
    "s3://bucket/team/v.safetensors::file:///etc/passwd",
    "s3://bucket/team/v[::]file:///etc/passwd",
    "s3://bucket/team/v?versionId=1",
    "https://good.example/team/v.safetensors#x",
    "https://good.example/team/v\n.safetensors",
    "https://good.example\t/team/v.safetensors",
    " https://good.example/team/v.safetensors",
    "https://good.example/team/v.safetensors\0",
    "https://good.example/team/a b.safetensors",
    # this machine
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file:/etc/passwd",
    "file:etc/passwd",
    "file://localhost/etc/passwd",
    "file://good.example/team/v.safetensors",
    "/etc/passwd",
    "etc/passwd",
    "oci:/etc",
    "oci:etc:tag",
    "oci:registry.example/team/vectors:v1",
    "oci:///registry.example/team/vectors",
    "local:///etc/passwd",
    "memory://bucket/team/v.safetensors",
    "github://acme:repo@main/v.safetensors",
    "",
    "https://",
    "https://[::1/team",
    "https://good.example/team/" + "a" * 5000,
)


@pytest.mark.parametrize("url", COVERED)
def test_what_is_under_a_prefix_is_allowed(url: str) -> None:
    """Whatever way of writing it is plain."""
    Allowed.parse(PREFIXES).check(Location.parse(url))


@pytest.mark.parametrize("url", ATTACKS)
def test_what_only_looks_like_it_is_refused(url: str, tmp_path: Path) -> None:
    """Before anything is opened or asked."""
    with pytest.raises((SourceNotAllowed, InvalidReference)):
        fetch(url, tmp_path / "target", limit=100, allowed=PREFIXES)
    assert list(tmp_path.iterdir()) == []


def test_without_prefixes_nothing_is_allowed(tmp_path: Path) -> None:
    """The default of a server."""
    with pytest.raises(SourceNotAllowed, match="allows none"):
        fetch("https://good.example/team/v", tmp_path / "t", limit=100, allowed=())


def local(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """A folder that is allowed, one that is not, and the prefixes."""
    folder, outside = tmp_path / "open", tmp_path / "closed"
    folder.mkdir()
    outside.mkdir()
    make_vector(folder / "v.safetensors")
    make_vector(outside / "v.safetensors", seed=1)
    return folder, outside, [folder.as_uri(), f"oci:{folder}"]


def test_a_local_folder_may_be_allowed(tmp_path: Path) -> None:
    """And links within it are followed."""
    folder, _, prefixes = local(tmp_path)
    (folder / "link.safetensors").symlink_to(folder / "v.safetensors")
    (folder / "here").symlink_to(folder)
    for name in ("v.safetensors", "link.safetensors", "here/v.safetensors"):
        target = tmp_path / f"target-{name.replace('/', '-')}"
        fetch(f"{folder.as_uri()}/{name}", target, limit=10**6, allowed=prefixes)
        assert target.read_bytes() == (folder / "v.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "link.safetensors",
        "out/v.safetensors",
        "up/closed/v.safetensors",
        "../closed/v.safetensors",
        "%2e%2e/closed/v.safetensors",
        "circle.safetensors",
    ],
)
def test_nothing_leads_out_of_a_local_folder(tmp_path: Path, name: str) -> None:
    """Neither a link to a file or folder, nor dots."""
    folder, outside, prefixes = local(tmp_path)
    (folder / "link.safetensors").symlink_to(outside / "v.safetensors")
    (folder / "out").symlink_to(outside)
    (folder / "up").symlink_to("..")
    (folder / "circle.safetensors").symlink_to(folder / "circle.safetensors")
    with pytest.raises((SourceNotAllowed, InvalidReference)):
        fetch(f"{folder.as_uri()}/{name}", tmp_path / "t", limit=10**6, allowed=prefixes)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "url",
    [
        "oci:{out}",
        "oci:{out}:v1",
        "oci:{folder}/link:v1",
        "oci:{folder}/link%3Av1",
        "oci:{folder}/li%6Ek:v1",
        "oci:{folder}/named:v1",
        "oci:{folder}/named%3Av1",
        "oci:open",
        "oci:open:v1",
    ],
)
def test_an_oci_folder_is_local_too(tmp_path: Path, url: str) -> None:
    """A tag at its end does not hide where it leads, and may be a part of a name."""
    folder, outside, prefixes = local(tmp_path)
    (folder / "link").symlink_to(outside)
    (folder / "named:v1").symlink_to(outside)
    with pytest.raises(SourceNotAllowed):
        fetch(url.format(out=outside, folder=folder), tmp_path / "t", limit=99, allowed=prefixes)


def test_a_link_that_is_put_there_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check and the opening."""
    folder, outside, prefixes = local(tmp_path)
    (folder / "deep").mkdir()
    make_vector(folder / "deep" / "v.safetensors")
    real_root_of = Allowed.root_of
    calls = []

    def swap(self: Allowed, path: Path) -> Path | None:
        root = real_root_of(self, path)
        calls.append(path)
        if len(calls) == 2:  # the last look before it is opened
            (folder / "deep" / "v.safetensors").unlink()
            (folder / "deep").rmdir()
            (folder / "deep").symlink_to(outside)
        return root

    monkeypatch.setattr(Allowed, "root_of", swap)
    with pytest.raises(Exception, match="cannot read"):
        fetch(f"{folder.as_uri()}/deep/v.safetensors", tmp_path / "t", limit=9**9, allowed=prefixes)
    assert len(calls) == 2
    assert not (tmp_path / "t").exists()
