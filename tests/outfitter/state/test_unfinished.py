"""Uploads on disk, as a gateway without the rights of root sees them."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from outfitter.state.uploads import Uploads
from taskvectors.store import DirectoryStore

NOBODY = 65534
DATA = b"all of it"


@pytest.fixture
def store() -> Iterator[DirectoryStore]:
    """A store in a folder that this user may write to; root, who may all, becomes another."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(folder, NOBODY, -1)
        os.seteuid(NOBODY)
    try:
        yield DirectoryStore(folder)
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_an_upload_whose_file_is_placed_can_be_published_again(store: DirectoryStore) -> None:
    """Publishing may fail after the file is in the store, and read-only: by any name it has."""
    uploads = Uploads(store.root / "incoming" / "uploads")
    upload = uploads.create(len(DATA), 100)
    appending = uploads.append(upload.id, 0)
    appending.write(DATA)
    appending.close()
    for _ in range(2):
        with uploads.whole(upload.id) as whole:
            path = store.new_upload()
            os.link(whole, path)
            store.place(path, hashlib.sha256(DATA).hexdigest())
    again = uploads.append(upload.id, len(DATA))
    again.take_back()
    again.close()
    assert uploads.find(upload.id).is_whole
    uploads.terminate(upload.id)
    assert store.check(hashlib.sha256(DATA).hexdigest())
