"""The journal: whole lines, adopted from the dead and from nobody else, within bounds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from outfitter.experiments.events.journal import Journal

CHILD = """
import sys
from pathlib import Path
from outfitter.experiments.events.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append(b"from the child")
print("written", flush=True)
sys.stdin.read()
"""


def adopted(journal: Journal) -> list[bytes]:
    found = []
    for segment in journal.orphans():
        found += segment.lines()
        segment.drop()
    return found


def test_what_is_written_is_taken_in_order_and_then_gone(tmp_path: Path) -> None:
    """Through several files."""
    journal = Journal(tmp_path, segment_bytes=20)
    lines = [b"line %d" % i for i in range(10)]
    assert all(journal.append(line) for line in lines)
    taken = []
    while segments := journal.take():
        for segment in segments:
            taken += segment.lines()
            journal.drop(segment)
    assert taken == lines
    assert list(tmp_path.iterdir()) == []
    assert journal.nbytes == 0


def test_what_is_not_dropped_is_taken_again(tmp_path: Path) -> None:
    """And no file is begun for each attempt."""
    journal = Journal(tmp_path)
    journal.append(b"a")
    [first] = journal.take()
    journal.append(b"b")
    assert journal.take() == [first]
    journal.drop(first)
    [second] = journal.take()
    assert second.lines() == [b"b"]
    journal.close()


def test_the_files_of_a_process_that_lives_are_its_own(tmp_path: Path) -> None:
    """Until it is killed; then one adopts them."""
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        one, other = Journal(tmp_path), Journal(tmp_path)
        assert adopted(one) == []
        child.kill()
        child.wait()
    [segment] = one.orphans()
    assert list(other.orphans()) == []
    segment.leave()
    assert adopted(other) == [b"from the child"]
    assert adopted(one) == []


def test_what_is_closed_is_left_to_whoever_comes_next(tmp_path: Path) -> None:
    """A gateway that could not reach its database, after its restart."""
    journal = Journal(tmp_path)
    journal.append(b"a")
    assert adopted(Journal(tmp_path)) == []
    journal.close()
    assert adopted(Journal(tmp_path)) == [b"a"]


def test_a_torn_last_line_is_no_line(tmp_path: Path) -> None:
    """Its request was never answered."""
    (tmp_path / "x.journal").write_bytes(b"whole\nhal")
    assert adopted(Journal(tmp_path)) == [b"whole"]


def test_a_full_journal_loses_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once in the log, each time in the numbers; then it goes on."""
    journal = Journal(tmp_path, max_bytes=10)
    assert [journal.append(b"abcd") for _ in range(4)] == [True, True, False, False]
    assert journal.num_lost == 2
    assert caplog.text.count("are lost") == 1
    for segment in journal.take():
        journal.drop(segment)
    assert journal.append(b"abcd")


def test_half_a_line_of_a_full_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what follows is read."""
    journal = Journal(tmp_path)
    journal.append(b"first")
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, line: whole(fd, line[:3]))
    assert not journal.append(b"second")
    monkeypatch.undo()
    assert journal.append(b"third")
    [segment] = journal.take()
    assert segment.lines() == [b"first", b"third"]
    journal.drop(segment)


def test_a_file_that_was_never_finished_is_swept(tmp_path: Path) -> None:
    """After an hour."""
    for name, age in (("old.new", 7200), ("young.new", 10)):
        (tmp_path / name).touch()
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    assert adopted(Journal(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["young.new"]


def test_a_folder_that_cannot_be_made_loses_events_and_nothing_else(tmp_path: Path) -> None:
    """Requests go on."""
    (tmp_path / "file").touch()
    journal = Journal(tmp_path / "file" / "events")
    assert not journal.append(b"a")
    assert journal.take() == []
