"""The commands of the store, each on a gateway over real HTTP and on a store's folder."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from outfitter.cli import app
from outfitter.state.records import Details
from outfitter.transfer.oci import export_layout
from outfitter.trust.signatures import generate, sign
from outfitter.vectors import Base, Draft
from taskvectors.checkpoint import fingerprint
from taskvectors.exchange import import_adapter
from taskvectors.format import file_digest, read_header, write_vector
from taskvectors.vector import BaseInfo, DenseDelta, TaskVector
from tests.outfitter.harness import SHAPES, Running, make_config, make_vector, opened, running
from tests.outfitter.test_cli import fails
from tests.outfitter.transfer.test_files import adapter
from tests.outfitter.transfer.web_server import cutting, send, serving

CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# Legal\n\nReads contracts.\n"
EXTRA = {"model.extra.weight": (600, 400)}
"""A parameter of the served base that the checkpoint does not have."""


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tables are not cut; uploads are remembered in a folder of each test's own."""
    monkeypatch.setattr("outfitter.commands.console.out._width", 300)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part in ("uploading", "transfer.download", "transfer.web"):
        monkeypatch.setattr(f"outfitter.{part}.BACKOFF_S", 0.001)


def make_checkpoint(folder: Path, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(s).astype(np.float32) for name, s in SHAPES.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the gateway serves."""
    return make_checkpoint(tmp_path_factory.mktemp("base") / "base", 1)


@pytest.fixture(scope="module")
def own_gateway(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Running]:
    served = Base(fingerprint(base), SHAPES | EXTRA)
    config = make_config(tmp_path_factory.mktemp("cli"), max_upload_bytes=2**21)
    with running(config, prepare=lambda config: served) as found:
        yield found.wait_ready()


@dataclass
class Place:
    """Runs commands on a gateway or on a store, in a namespace of the test's own."""

    options: tuple[str, ...]
    namespace: str

    def run(self, *arguments: object) -> Result:
        texts = [str(argument) for argument in (*arguments, *self.options)]
        return CliRunner().invoke(app, texts)

    def good(self, *arguments: object) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def json(self, *arguments: object) -> object:
        return json.loads(self.good(*arguments, "--json"))

    def name(self, name: str) -> str:
        return f"{self.namespace}/{name}"

    def push(self, name: str, file: Path, *options: object) -> str:
        return self.good("push", file, "--name", self.name(name), *options)


@pytest.fixture(params=["gateway", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    namespace = re.sub(r"\W", "-", request.node.name).strip("-")[-60:].strip("-")
    if request.param == "store":
        return Place(("--store", str(tmp_path / "store")), namespace)
    return Place(("--url", request.getfixturevalue("own_gateway").url), namespace)


@pytest.fixture
def file(tmp_path: Path, base: Path) -> Path:
    return make_vector(tmp_path / "v.safetensors", fingerprint=fingerprint(base))


def other(file: Path, seed: int) -> Path:
    """A different task vector for the same base."""
    path = file.with_name(f"other-{seed}.safetensors")
    return make_vector(path, seed, fingerprint=read_header(file).base.fingerprint)


def test_everything_that_is_said_with_a_push_is_shown(place: Place, file: Path) -> None:
    """And nothing else; the same push again makes no new version."""
    card = file.with_name("README.md")
    card.write_text(CARD)
    options = ("--tag", "stable", "--tag", "v1", "--license", "mit", "--language", "de")
    options += ("--description", "Reads law", "--label", "law", "--label", "eu", "--card", card)
    pushed = place.push("legal", file, *options)
    assert pushed == f"{place.name('legal')}@1 sha256:{file_digest(file)}\n"
    assert place.push("legal", file, *options) == pushed
    entry = place.json("show", place.name("legal"))
    expected = {
        "name": place.name("legal"),
        "version": 1,
        "tags": ["latest", "stable", "v1"],
        "license": "MIT",
        "languages": ["de"],
        "description": "Reads law",
        "labels": ["law", "eu"],
        "has_card": True,
        "is_signed": False,
        "nnz": 7,
    }
    assert {**entry, "tags": sorted(entry["tags"])} == {**entry, **expected}
    text = place.good("show", place.name("legal"))
    for word in (place.name("legal"), file_digest(file), "MIT", "Reads law", "law, eu", "stable"):
        assert word in text
    assert place.good("show", place.name("legal@v1"), "--card") == CARD


def test_a_push_takes_the_signature_along(place: Place, file: Path, tmp_path: Path) -> None:
    """Made now, given, or beside the file."""
    generate(tmp_path / "k.key", tmp_path / "k.pub")
    place.push("now", file, "--sign-key", tmp_path / "k.key")
    assert place.json("show", place.name("now"))["is_signed"]
    signature = file.with_name(f"{file.name}.sig")
    signature.write_text(sign(file, tmp_path / "k.key"))
    place.push("beside", file)
    assert place.json("show", place.name("beside"))["is_signed"]
    moved = signature.rename(tmp_path / "elsewhere.sig")
    place.push("given", file, "--signature", moved)
    assert place.json("show", place.name("given"))["is_signed"]
    place.push("none", file)
    assert not place.json("show", place.name("none"))["is_signed"]


def test_an_adapter_is_pushed_from_its_folder(place: Place, tmp_path: Path) -> None:
    """Converted as `outfitter import` does it."""
    folder = adapter(tmp_path / "lora")
    digest = import_adapter(folder, tmp_path / "expected")
    assert place.push("lora", folder) == f"{place.name('lora')}@1 sha256:{digest}\n"
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(place.run("push", empty, "--name", "x"), "no adapter_config.json", "--finetuned")
    fails(place.run("push", tmp_path / "nothing", "--name", "x"), "there is no file")


def test_a_pair_of_checkpoints_is_pushed_as_its_difference(
    place: Place, tmp_path: Path, base: Path
) -> None:
    """With the options of `outfitter extract`."""
    tuned = make_checkpoint(tmp_path / "tuned", 2)
    pair = ("push", "--name", place.name("diff"), "--base", base, "--finetuned", tuned)
    place.good(*pair, "--method", "magnitude", "--density", "0.25", "--dtype", "fp32")
    entry = place.json("show", place.name("diff"))
    assert (entry["method"], entry["nnz"]) == ("magnitude", 8 + 4)
    fails(place.run(*pair, "--density", "2"), "--density must be")
    fails(place.run(*pair, "--lossless", "--method", "dare"), "exclude each other")
    fails(place.run(*pair[:3], "--finetuned", tuned), "needs --base")
    fails(place.run(*pair[:3], tuned / "model.safetensors", "--density", "0.5"), "need --base")


def test_a_tag_moves_and_goes(place: Place, file: Path) -> None:
    """And a reference by it follows."""
    place.push("t", file, "--tag", "stable")
    place.push("t", other(file, 1))
    name = place.name("t")
    assert place.json("show", f"{name}@stable")["version"] == 1
    moved = place.run("tag", name, "stable")
    assert moved.stderr == f"stable is now {name}@2\n"
    assert place.json("show", f"{name}@stable")["version"] == 2
    assert place.run("untag", name, "stable").stderr == f"{name}@stable is gone\n"
    fails(place.run("show", f"{name}@stable"), "stable")
    fails(place.run("untag", name, "stable"), "stable")
    fails(place.run("tag", name, "latest"), "latest")
    fails(place.run("tag", name, "No Tag"), "No Tag")


def test_a_delete_forgets_a_version_or_a_name(place: Place, file: Path) -> None:
    """And says so."""
    place.push("d", file)
    place.push("d", other(file, 1))
    name = place.name("d")
    assert place.run("delete", f"{name}@2").stderr == f"deleted {name}@2\n"
    assert place.json("show", name)["version"] == 1
    place.good("delete", name)
    fails(place.run("show", name), f"no task vector '{name}'")
    fails(place.run("delete", name), f"no task vector '{name}'")


def test_lists_have_filters_order_and_pages(place: Place, file: Path) -> None:
    """The same on both."""
    place.push("b", file, "--license", "MIT", "--label", "law", "--tag", "stable")
    place.push("a", other(file, 1), "--license", "Apache-2.0", "--language", "de")
    place.push("c", other(file, 2), "--license", "MIT")
    place.push("c", other(file, 3), "--license", "MIT")

    def names(*options: object) -> list[str]:
        rows = place.json("list", "--namespace", place.namespace, *options)
        assert isinstance(rows, list)
        return [f"{row['name'].rpartition('/')[2]}{row['version']}" for row in rows]

    assert names() == ["a1", "b1", "c2"]
    assert names("--order", "-name") == ["c2", "b1", "a1"]
    assert sorted(names("--all-versions")) == ["a1", "b1", "c1", "c2"]
    assert names("--license", "mit") == ["b1", "c2"]
    assert names("--label", "law") == ["b1"]
    assert names("--language", "de") == ["a1"]
    assert names("--tag", "stable") == ["b1"]
    assert names("--base", "base") == ["a1", "b1", "c2"]
    assert names("--base", "another") == []
    first = place.run("list", "--namespace", place.namespace, "--limit", "2", "--json")
    [cursor] = re.findall(r"there is more: --after (\S+)\n", first.stderr)
    assert names("--after", cursor) == ["c2"]
    fails(place.run("list", "--order", "colour"), "unknown order 'colour'", "downloads")
    fails(place.run("list", "--license", "no such"), "no such")


def test_long_lists_are_asked_for_page_by_page(
    place: Place, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And come as one."""
    monkeypatch.setattr("outfitter.commands.vectors.PAGE", 2)
    for number in range(5):
        place.push(f"n{number}", file)
    rows = place.json("list", "--namespace", place.namespace)
    assert [row["name"] for row in rows] == [place.name(f"n{n}") for n in range(5)]
    assert len(place.json("list", "--namespace", place.namespace, "--limit", "3")) == 3


def test_search_finds_words_and_shows_descriptions(place: Place, file: Path) -> None:
    """All words must be there."""
    place.push("legal", file, "--description", "Reads German contracts")
    place.push("poems", other(file, 1), "--description", "Writes rhymes")
    options = ("--namespace", place.namespace)
    text = place.good("search", "contracts german", *options)
    assert "Reads German contracts" in text
    assert place.name("legal") in text
    assert "poems" not in text
    assert place.json("search", "contracts rhymes", *options) == []


def test_a_refused_push_is_one_line(place: Place, file: Path, tmp_path: Path) -> None:
    """Whatever is wrong: the name, the licence, the card, the file."""
    (tmp_path / "broken").write_bytes(b"\x08")
    (tmp_path / "card").write_bytes(b"\xff")
    name = ("--name", place.name("x"))
    for arguments, words in (
        ((file, "--name", "a b"), ("'a b'",)),
        ((file, "--name", "a@1"), ("'a@1'", "without a version")),
        ((file, *name, "--license", "my own"), ("my own",)),
        ((file, *name, "--language", "deutsch!"), ("deutsch!",)),
        ((file, *name, "--tag", "No"), ("'No'",)),
        ((file, *name, "--card", tmp_path / "none"), ("--card",)),
        ((file, *name, "--card", tmp_path / "card"), ("--card",)),
        ((file, *name, "--signature", tmp_path / "none"), ("signature",)),
        ((file, *name, "--base", tmp_path), ("--base",)),
        ((tmp_path / "broken", *name), ("header",)),
        (name, ("name a file",)),
    ):
        fails(place.run("push", *arguments), *words)
    fails(place.run("show", place.name("x")), "no task vector")


def test_a_pull_publishes_what_a_source_says(
    place: Place, file: Path, tmp_path: Path, own_gateway: Running
) -> None:
    """From a gateway: the card, the licence, the signature, the labels."""
    generate(tmp_path / "k.key", tmp_path / "k.pub")
    card = tmp_path / "README.md"
    card.write_text(CARD)
    source = Place(("--url", own_gateway.url), f"{place.namespace}-source")
    options = ("--card", card, "--label", "law", "--sign-key", tmp_path / "k.key")
    source.push("legal", file, "--description", "Reads law", *options)
    url = f"{own_gateway.url}/{source.name('legal')}@latest"
    pulled = place.run("pull", url, "--name", place.name("mine"), "--tag", "new")
    assert pulled.stdout == f"{place.name('mine')}@1 sha256:{file_digest(file)}\n", pulled.stderr
    assert f"{source.name('legal')}@1 at sha256:{file_digest(file)}" in pulled.stderr
    entry = place.json("show", place.name("mine@new"))
    original = source.json("show", source.name("legal"))
    for key in ("license", "languages", "description", "labels", "has_card", "is_signed", "digest"):
        assert entry[key] == original[key], key
    assert entry["is_signed"]
    assert place.good("show", place.name("mine"), "--card") == CARD
    place.good("pull", url, "--name", place.name("other"), "--license", "MIT", "--label", "x")
    entry = place.json("show", place.name("other"))
    assert (entry["license"], entry["labels"], entry["languages"]) == ("MIT", ["x"], ["en"])


def test_a_store_keeps_its_names_where_the_environment_says(
    tmp_path: Path, file: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite or PostgreSQL: another folder with the same database knows the same names."""
    monkeypatch.setenv("OUTFITTER_DATABASE_URL", database_url)
    one, two = (Place(("--store", str(tmp_path / name)), "acme") for name in ("one", "two"))
    one.push("json", file, "--tag", "stable")
    assert two.json("show", "acme/json@stable")["digest"] == f"sha256:{file_digest(file)}"
    two.good("tag", "acme/json@1", "v1")
    assert "v1" in one.json("show", "acme/json")["tags"]


def test_an_artefact_is_pulled_from_a_layout(place: Place, file: Path, tmp_path: Path) -> None:
    """With what it says of itself."""
    config = make_config(tmp_path / "origin")
    with opened(config) as vectors:
        path = vectors.store.new_upload()
        path.write_bytes(file.read_bytes())
        draft = Draft("acme/legal", Details(license="MIT", description="Reads law", labels=("eu",)))
        version = vectors.publish(path, file_digest(path), draft, None)
        export_layout(version, vectors.path(version.digest), tmp_path / "layout", "v1")
    url = f"oci:{tmp_path / 'layout'}:v1"
    pulled = place.good("pull", url, "--name", place.name("mine"))
    assert pulled == f"{place.name('mine')}@1 sha256:{file_digest(file)}\n"
    entry = place.json("show", place.name("mine"))
    assert (entry["license"], entry["description"]) == ("MIT", "Reads law")
    fails(place.run("pull", f"{url}2", "--name", place.name("no")), "no tag 'v12'")


def test_a_pull_writes_a_file(file: Path, tmp_path: Path) -> None:
    """Whole, sound, and durable, or not at all; another file of that name is replaced."""
    target = tmp_path / "out" / "got.safetensors"
    target.parent.mkdir()
    target.write_bytes(b"old")
    pull = Place((), "")
    pull.good("pull", file.as_uri(), "-o", target)
    assert target.read_bytes() == file.read_bytes()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[:-1] + b"?")
    fails(pull.run("pull", broken.as_uri(), "-o", target), "")
    fails(pull.run("pull", file.as_uri(), "-o", target, "--max-bytes", "10"), "at most 10")
    fails(pull.run("pull", "nowhere", "-o", target), "unsupported scheme")
    fails(pull.run("pull", file.as_uri()), "--out FILE", "--name NAME")
    fails(pull.run("pull", file.as_uri(), "-o", target, "--url", "http://x"), "is for --name")
    fails(pull.run("pull", file.as_uri(), "-o", target, "--license", "MIT"), "license is for")
    assert target.read_bytes() == file.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["got.safetensors"]


# Only on a gateway: what can go wrong on the way.


@pytest.fixture
def large(tmp_path: Path, base: Path) -> Path:
    """A megabyte, so that a connection can break in the middle of it."""
    rng = np.random.default_rng(3)
    delta = DenseDelta(rng.standard_normal(EXTRA["model.extra.weight"]).astype(np.float32))
    vector = TaskVector(BaseInfo("base", fingerprint(base)), {"model.extra.weight": delta}, {})
    write_vector(vector, tmp_path / "large.safetensors")
    return tmp_path / "large.safetensors"


def gateway_place(url: str) -> Place:
    return Place(("--url", url), "broken")


def test_a_broken_upload_goes_on(own_gateway: Running, large: Path) -> None:
    """In the same command, where it broke, however often: bytes that arrived are not sent again."""
    rng = random.Random(11)
    cuts = [rng.choice((100, 300, 50_000, 200_000)) for _ in range(12)]
    with cutting(own_gateway.url, cuts, upwards=True) as proxy:
        pushed = gateway_place(proxy.url).push("resumed", large)
        assert proxy.connections > 6, cuts
        assert proxy.sent < 1.5 * large.stat().st_size, cuts
    assert pushed == f"broken/resumed@1 sha256:{file_digest(large)}\n"
    shown = gateway_place(own_gateway.url).json("show", "broken/resumed")
    assert (shown["digest"], shown["bytes"]) == (pushed.split()[1], large.stat().st_size)


def test_answers_that_are_lost_do_no_harm(own_gateway: Running, file: Path) -> None:
    """Wherever the connection breaks, the file is published once."""
    with cutting(own_gateway.url, []) as proxy:
        gateway_place(proxy.url).push("whole", file)
        length = proxy.received
        assert length > 500
        for count in range(0, length + 70, 70):
            proxy.cuts[:] = [count or 1]
            name = f"lost-{count}"
            pushed = gateway_place(proxy.url).push(name, file)
            assert pushed == f"broken/{name}@1 sha256:{file_digest(file)}\n"


def test_a_push_that_was_given_up_goes_on_in_a_rerun(
    own_gateway: Running, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload is remembered; a second one would send everything again."""
    monkeypatch.setattr("outfitter.uploading.ATTEMPTS", 1)
    with cutting(own_gateway.url, [10**6], upwards=True) as proxy:
        remote = gateway_place(proxy.url)
        proxy.cuts[:] = [large.stat().st_size // 2]
        fails(remote.run("push", large, "--name", "broken/rerun"), "cannot reach the gateway")
        first = proxy.sent
        proxy.cuts[:] = []
        assert remote.push("rerun", large).startswith("broken/rerun@1 ")
        assert proxy.sent - first < 0.7 * large.stat().st_size
    assert gateway_place(own_gateway.url).json("show", "broken/rerun")["version"] == 1


def test_a_broken_download_goes_on(own_gateway: Running, large: Path, tmp_path: Path) -> None:
    """By range, from a real gateway."""
    gateway_place(own_gateway.url).push("down", large)
    cuts = [150, 100_000, 300, 200_000, 400_000]
    with cutting(own_gateway.url, cuts) as proxy:
        url = f"{proxy.url}/broken/down@1"
        pulled = Place((), "").run("pull", url, "-o", tmp_path / "got.safetensors")
        assert pulled.exit_code == 0, pulled.stderr
        assert proxy.cuts == []
    assert (tmp_path / "got.safetensors").read_bytes() == large.read_bytes()


def test_too_much_is_refused_before_it_is_sent(own_gateway: Running, tmp_path: Path) -> None:
    """By its announced length."""
    (tmp_path / "huge").write_bytes(b"x" * 2**22)
    with cutting(own_gateway.url, [], upwards=True) as proxy:
        result = gateway_place(proxy.url).run("push", tmp_path / "huge", "--name", "x")
        fails(result, "413", str(2**21))
        assert proxy.sent < 10_000


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"digest": "sha256:" + "0" * 64, "name": "a", "version": 1}, "with digest"),
        ({"digest": "md5:0", "name": "a", "version": 1}, "no digest"),
        ({"digest": ["x"]}, "no digest"),
        ({"digest": "sha256:" + "0" * 64, "name": "../../etc", "version": 1}, "invalid reference"),
        ({"digest": "sha256:" + "0" * 64, "name": {"a": 1}, "version": "x"}, "with digest"),
        ([], "no JSON object|not answer with a JSON object"),
        (None, "JSON"),
    ],
)
def test_a_lying_gateway_gives_no_file(file: Path, tmp_path: Path, about: object, why: str) -> None:
    """Another digest, another name, no sense at all: nothing is left behind."""
    folder = tmp_path / "out"
    folder.mkdir()
    with serving() as web:
        answer = json.dumps(about).encode() if about is not None else b"<html>"
        web.give("/v1/task_vectors/a", answer)
        for path in ("a@1", "sha256:" + "0" * 64):
            web.give(f"/v1/task_vectors/{path}/file", file.read_bytes())
        result = Place((), "").run("pull", f"{web.url}/a", "-o", folder / "got.safetensors")
    fails(result)
    assert re.search(why, result.stderr), result.stderr
    assert list(folder.iterdir()) == []


HOSTILE = "\x1b[31m[bold]\r\n\u202e\x07"


def test_hostile_text_is_printed_harmlessly() -> None:
    """A gateway that says what would steer a terminal, or sends other types than it should."""
    row: dict = dict.fromkeys(("name", "license", "digest", "description", "method"), HOSTILE)
    row |= {"version": HOSTILE, "tags": [HOSTILE, 1, None], "base": {"name": HOSTILE}}
    odd: dict = {
        "name": 1,
        "tags": "x",
        "bytes": "x",
        "density": [],
        "base": [],
        "created_at": 1e99,
    }
    with serving() as web:
        web.give(
            "/v1/task_vectors",
            json.dumps({"data": [row, odd, 3, {}], "after": HOSTILE}).encode(),
        )
        web.give("/v1/task_vectors/x", json.dumps(row).encode())
        web.give("/v1/task_vectors/odd", json.dumps(odd).encode())
        web.give("/v1/task_vectors/x/card", HOSTILE.encode())
        remote = gateway_place(web.url)
        for arguments in (
            ("list", "--limit", "3"),
            ("search", "x", "--limit", "3"),
            ("show", "x"),
            ("show", "x", "--card"),
            ("show", "odd"),
            ("show", "x", "--json"),
        ):
            result = remote.run(*arguments)
            assert result.exit_code == 0, (arguments, result.stderr, result.exception)
            said = (result.stdout + result.stderr).replace("\n", "")
            assert said.isprintable(), arguments
            if arguments[0] in ("list", "search") or arguments == ("show", "x"):
                assert "[bold]" in said


def test_a_gateway_that_answers_nonsense_is_one_line(file: Path) -> None:
    """No JSON, an error without a message, a redirect, an endless answer, no upload's place."""
    answers = {
        "html": (200, b"<html>", {}),
        "list": (200, b"[]", {}),
        "teapot": (418, HOSTILE.encode(), {}),
        "odd": (400, b'{"error": {"message": ["x"], "code": {}}}', {}),
        "away": (302, b"", {"location": "http://127.0.0.1:1/"}),
    }
    with serving() as web:
        for name, (status, body, headers) in answers.items():
            web.answers[f"/v1/task_vectors/{name}"] = lambda r, a=(status, body, headers): send(
                r, *a
            )
            fails(gateway_place(web.url).run("show", name))
        fails(gateway_place(web.url).run("push", file, "--name", "x"), "501")
        fails(gateway_place(web.url).run("list"), "404")
    fails(gateway_place("ftp://host").run("list"), "unsupported --url")
    secret = gateway_place("http://user:secret@127.0.0.1:1").run("list")
    fails(secret, "cannot reach the gateway at http://127.0.0.1:1")
    assert "secret" not in secret.stderr
    fails(gateway_place("http://[").run("list"), "")
