"""Each batch takes effect once in a file, whatever the crash left there; no byte is ever cut or overwritten."""

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_facts import counted
from tb_help import Killed, clone, cuts, killed_at, plant, tree, without_fsync

from spoolagent.errors import Unreachable
from spoolagent.format.durable import make_dirs
from spoolagent.receivers.appendfile import Append, append, own_names
from spoolagent.testing import MemoryState, set_fault

ONE = b"alpha\nbeta\n"
TWO = b"gamma\ndelta\nepsilon\n"


def lines(data):
    return data.rfind(b"\n") + 1


def adder(root, data, **more):
    return Append(
        **{
            "key": "f",
            "folder": str(root),
            "name": lambda n: f"f-{n:03d}",
            "encode": lambda _at: data,
            "head": b"HEAD\n",
            **more,
        }
    )


def test_batches_are_appended_and_the_length_is_in_the_state(tmp_path):
    state = MemoryState()
    for data in (ONE, TWO):
        append(state, adder(tmp_path, data))
        state.commit()
    assert tree(tmp_path) == {"f-001": b"HEAD\n" + ONE + TWO}
    assert state.get("f")["length"] == len(b"HEAD\n" + ONE + TWO)
    assert os.stat(tmp_path / "f-001").st_mode & 0o777 == 0o600


@pytest.mark.bytes
@without_fsync()
def test_a_crash_at_every_byte_ends_in_the_same_bytes(tmp_path):
    """Two files in one delivery, one of them new: cut at each byte, the same batch completes both."""
    root = tmp_path / "t"

    def deliver(state, a, b):
        append(state, adder(root, a), adder(root, b, key="g", name=lambda n: f"sub-{n}"))

    state = MemoryState()
    append(state, adder(root, ONE))
    state.commit()
    before = tree(root)
    deliver(state, TWO, ONE)
    state.rollback()  # what was committed by a checkpoint stays
    after = tree(root)
    made = list(cuts(before, after, ["f-001", "sub-1"]))
    for files in counted("any file target, crash", made):
        plant(root, files)
        again = clone(state)
        deliver(again, TWO, ONE)
        assert tree(root) == after
        assert again.get("f")["length"] == len(after["f-001"])
        assert again.get("g")["length"] == len(after["sub-1"])
    assert len(made) == len(TWO) + len(b"HEAD\n" + ONE) + 1


def test_a_kill_at_every_fault_point_ends_in_the_same_bytes(tmp_path):
    seen = []
    for point in range(20):
        root, state = tmp_path / str(point), MemoryState()
        try:
            with killed_at(point, log := []):
                append(state, adder(root / "deep", ONE))
                state.commit()
                append(state, adder(root / "deep", TWO))
                state.commit()
            break
        except Killed:
            state.rollback()
        if state.get("f") is None or state.get("f")["length"] == 0:
            append(state, adder(root / "deep", ONE))
            state.commit()
        append(state, adder(root / "deep", TWO))
        assert tree(root) == {"deep/f-001": b"HEAD\n" + ONE + TWO}, log
        seen.append(log[-1][0])
    assert {"mkdir", "create", "write", "fsync"} <= set(seen)
    assert point > 5


def test_a_longer_tail_that_begins_with_the_batch_is_taken_over(tmp_path):
    """A state restored from a backup: the batches come again, in other sizes."""
    state = MemoryState()
    append(state, adder(tmp_path, ONE))
    state.commit()
    old = clone(state)
    append(state, adder(tmp_path, TWO))
    whole = tree(tmp_path)
    for piece in (TWO[:6], TWO[6:9], TWO[9:]):
        append(old, adder(tmp_path, piece))
        assert tree(tmp_path) == whole
    assert old.get("f") == state.get("f")


@pytest.mark.parametrize("tail", [b"X", b"gamma\nX", b"gamma\ndelta\nepsilon\nX"])
def test_what_does_not_continue_is_left_and_a_later_file_begins(tmp_path, tail):
    state = MemoryState()
    append(state, adder(tmp_path, ONE, whole=lines))
    state.commit()
    with open(tmp_path / "f-001", "ab") as file:
        file.write(tail)
    append(state, adder(tmp_path, TWO, whole=lines))
    append(state, adder(tmp_path, ONE, whole=lines))
    if tail.startswith(TWO):  # the batch is there: nothing to mend until the next one
        expected = {"f-001": b"HEAD\n" + ONE + tail, "f-002": b"HEAD\n" + ONE}
    else:
        rest = TWO[lines(tail) :]
        expected = {"f-001": b"HEAD\n" + ONE + tail, "f-002": b"HEAD\n" + rest + ONE}
    assert tree(tmp_path) == expected
    assert own_names(state.get("f")) == ["f-001", "f-002"]


def test_a_crash_while_a_later_file_begins_skips_the_same_records(tmp_path):
    root, state = tmp_path / "t", MemoryState()
    append(state, adder(root, ONE, whole=lines))
    state.commit()
    with open(root / "f-001", "ab") as file:
        file.write(b"gamma\nDAMAGE")
    before = tree(root)
    append(state, adder(root, TWO, whole=lines))
    state.rollback()
    after = tree(root)
    assert after["f-002"] == b"HEAD\ndelta\nepsilon\n"
    for files in cuts(before, after, ["f-002"]):
        plant(root, files)
        again = clone(state)
        for piece in (TWO[:9], TWO[9:]):  # and in other pieces
            append(again, adder(root, piece, whole=lines))
        assert tree(root) == after


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("size", [len(TWO), len(TWO) - 1])
@without_fsync()
def test_what_a_power_cut_left_of_a_batch_is_completed(tmp_path, is_first, size):
    """Blocks reach the disk in any order; the others read as zeros."""
    for begin in range(size):
        for end in range(begin, size + 1):
            state, root = MemoryState(), tmp_path / f"{begin}-{end}"
            append(state, adder(root, b"" if is_first else ONE))
            state.commit()
            with open(root / "f-001", "ab") as file:
                file.write((TWO[:begin] + bytes(end - begin) + TWO[end:])[:size])
            assert append(state, adder(root, TWO)) == []
            assert tree(root) == {"f-001": b"HEAD\n" + (b"" if is_first else ONE) + TWO}


def test_zeros_before_what_somebody_else_wrote_are_left_alone(tmp_path):
    state = MemoryState()
    append(state, adder(tmp_path, ONE))
    state.commit()
    with open(tmp_path / "f-001", "ab") as file:
        file.write(b"\0" * len(TWO) + b"more")
    assert "left alone" in append(state, adder(tmp_path, TWO))[0]
    assert tree(tmp_path)["f-002"] == b"HEAD\n" + TWO


def test_without_whole_records_the_later_file_has_the_whole_batch(tmp_path):
    state = MemoryState()
    append(state, adder(tmp_path, ONE))
    state.commit()
    with open(tmp_path / "f-001", "ab") as file:
        file.write(b"gamma\nDAMAGE")
    append(state, adder(tmp_path, TWO))
    assert tree(tmp_path)["f-002"] == b"HEAD\n" + TWO


@pytest.mark.parametrize("damage", ["remove", "cut", "directory", "link"])
def test_a_file_that_was_removed_or_cut_is_followed_by_a_later_one(tmp_path, damage):
    state, root, path = MemoryState(), tmp_path / "t", tmp_path / "t" / "f-001"
    outside = tmp_path / "outside"
    outside.write_bytes(b"HEAD\n" + ONE)
    append(state, adder(root, ONE))
    if damage == "cut":
        os.truncate(path, 7)
    else:
        path.unlink()
    if damage == "directory":
        path.mkdir()
    if damage == "link":
        path.symlink_to(outside)
    append(state, adder(root, TWO))
    append(state, adder(root, ONE))
    assert tree(root)["f-002"] == b"HEAD\n" + TWO + ONE
    assert outside.read_bytes() == b"HEAD\n" + ONE


def test_a_file_that_is_not_in_the_state_is_never_written(tmp_path):
    (tmp_path / "f-001").write_bytes(b"not ours")
    (tmp_path / "f-002").write_bytes(b"")
    append(MemoryState(), adder(tmp_path, ONE))
    assert tree(tmp_path) == {"f-001": b"not ours", "f-002": b"", "f-003": b"HEAD\n" + ONE}


def test_a_file_that_appears_between_naming_and_creation_is_not_ours(tmp_path):
    state = MemoryState()

    def fault(operation, path):
        if operation == "create" and not os.path.exists(path):
            with open(path, "wb") as file:
                file.write(b"somebody else's")

    set_fault(fault)
    try:
        with pytest.raises(Unreachable):
            append(state, adder(tmp_path, ONE))
        set_fault(None)
        state.rollback()
        append(state, adder(tmp_path, ONE))
    finally:
        set_fault(None)
    assert tree(tmp_path) == {"f-001": b"somebody else's", "f-002": b"HEAD\n" + ONE}


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "mkdir"])
def test_a_full_disk_is_transient_and_leaves_no_trace(tmp_path, operation):
    state, root = MemoryState(), tmp_path / "new"

    def fault(what, path):
        if what == operation:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    set_fault(fault)
    try:
        with pytest.raises(Unreachable, match="No space left"):
            append(state, adder(root, ONE))
    finally:
        set_fault(None)
    state.rollback()
    append(state, adder(root, ONE))
    assert tree(root) == {"f-001": b"HEAD\n" + ONE}


def test_after_a_failed_fsync_the_bytes_are_written_again(tmp_path):
    """The kernel forgets dirty pages after a failed fsync: only a new write makes the next fsync mean something."""
    state, calls = MemoryState(), []
    fail = [True]
    make_dirs(str(tmp_path))

    def fault(what, path):
        calls.append(what)
        if what == "fsync" and fail:
            fail.clear()
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    set_fault(fault)
    try:
        with pytest.raises(Unreachable):
            append(state, adder(tmp_path, ONE))
        state.rollback()
        append(state, adder(tmp_path, ONE))
    finally:
        set_fault(None)
    assert calls == ["create", "write", "fsync", "write", "fsync", "fsync"]
    assert tree(tmp_path) == {"f-001": b"HEAD\n" + ONE}


def test_the_encoding_may_depend_on_the_offset(tmp_path):
    """As W&B's blocks do: each byte here says at which offset it stands."""

    def encode(count):
        return lambda at: bytes((at + i) % 251 for i in range(count))

    state, root = MemoryState(), tmp_path / "t"
    append(state, adder(root, b"", head=b"", encode=encode(300)))
    state.commit()
    before = tree(root)
    append(state, adder(root, b"", head=b"", encode=encode(20)))
    after = tree(root)
    assert after["f-001"] == bytes(i % 251 for i in range(320))
    for files in cuts(before, after, ["f-001"]):
        plant(root, files)
        append(clone(state), adder(root, b"", head=b"", encode=encode(20)))
        assert tree(root) == after


def test_nothing_to_add_touches_nothing(tmp_path):
    state = MemoryState()
    append(state, adder(tmp_path, ONE))
    (tmp_path / "f-001").chmod(0o400)
    set_fault(lambda what, path: pytest.fail(f"{what} {path}"))
    try:
        append(state, adder(tmp_path, b""))
    finally:
        set_fault(None)


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=4), min_size=1, max_size=6
    ),
    data=st.data(),
)
@without_fsync()
def test_random_crashes_conserve_every_record_once(tmp_path_factory, batches, data):
    """Crashes at random points and cuts: the files, read one after the other, hold every record once, in order."""
    root, state = tmp_path_factory.mktemp("t"), MemoryState()
    for batch in batches:
        encoded = b"".join(record.hex().encode() + b"\n" for record in batch)
        for _ in range(data.draw(st.integers(0, 3))):
            try:
                with killed_at(data.draw(st.integers(0, 5))):
                    append(state, adder(root, encoded, head=b"", whole=lines))
            except Killed:
                pass
            state.rollback()
            record = state.get("f")
            path = os.path.join(root, record["name"]) if record else ""
            if path and os.path.exists(path) and os.path.getsize(path) > record["length"]:
                os.truncate(path, data.draw(st.integers(record["length"], os.path.getsize(path))))
                if data.draw(st.booleans()):
                    with open(path, "ab") as file:
                        file.write(b"!")  # damage that no batch continues
        append(state, adder(root, encoded, head=b"", whole=lines))
        state.commit()
    files = tree(root)
    read = [line for name in sorted(files) for line in files[name].split(b"\n") if line and b"!" not in line]
    assert read == [record.hex().encode() for batch in batches for record in batch]
