"""The mirror of a receiver's cursor database: it follows, it takes over, and is never in the way."""

import contextlib
import os
import sqlite3

import pytest
from spool_help import make_writer, write_metrics
from test_worker import Agent, simple

from spoolagent.format import durable
from spoolagent.serving import sums
from spoolagent.serving.changes import Commit
from spoolagent.serving.database import SIDE_FILES, existing
from spoolagent.serving.dead_letters import Choice, mark
from spoolagent.serving.store import Store, target_dir
from spoolagent.testing import MemoryReceiver

TARGET = "memory:"


class Stop(BaseException):
    """A SIGKILL, as far as one process can have it."""


def paths(spool):
    folder = target_dir(str(spool), TARGET)
    return os.path.join(folder, "state.sqlite"), os.path.join(folder, "state.mirror")


def store_with(spool, *keys):
    """A store with one commit for each key, closed."""
    with Store(str(spool), TARGET) as store:
        for key in keys:
            store.put(key, key)
            store.commit([])


def same(spool):
    one, other = (contextlib.closing(existing(path, "ro")) for path in paths(spool))
    with one as db, other as copy:
        return sums.same(db, copy)


def held(spool):
    with Store(str(spool), TARGET) as store:
        return [key for key, _ in store.scan("")], store.news


def damage(path):
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(4096 + 100)
        file.write(os.urandom(min(4000, size - 5000)))


def remove(path):
    for side in ("", *SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + side)


def test_it_holds_what_the_database_holds_after_each_commit(tmp_path):
    with Store(str(tmp_path), TARGET) as store:
        for number in range(20):
            store.put(f"key {number % 7}", number)
            if number % 3 == 0:
                store.delete(f"key {number % 5}")
            store.commit([Commit(skipped={"image": number})])
            assert same(tmp_path), number


def test_a_kill_between_the_two_commits_and_the_database_damaged_later(tmp_path):
    database, mirror = paths(tmp_path)
    store_with(tmp_path, "a")

    def kill(operation, path):
        if operation == "commit" and path == mirror:
            raise Stop

    store = Store(str(tmp_path), TARGET)
    durable.set_fault(kill)
    store.put("b", "b")
    with pytest.raises(Stop):
        store.commit([])
    durable.set_fault(None)
    store.close()
    assert not same(tmp_path), "the mirror is behind"
    assert held(tmp_path) == (["a", "b"], "")
    assert same(tmp_path), "it was made anew"
    damage(database)
    keys, news = held(tmp_path)
    assert keys == ["a", "b"] and f"{database} was found damaged" in news
    assert same(tmp_path) and held(tmp_path)[1] == "", "it is said once"


@pytest.mark.parametrize("how", ["damaged", "removed", "emptied"])
def test_a_mirror_that_is_damaged_is_made_anew(tmp_path, how):
    _, mirror = paths(tmp_path)
    store_with(tmp_path, "a", "b")
    if how == "damaged":
        damage(mirror)
    else:
        remove(mirror)
        if how == "emptied":
            open(mirror, "w").close()
    assert held(tmp_path) == (["a", "b"], "")
    assert same(tmp_path)


def test_a_database_that_went_back_in_silence(tmp_path):
    """SQLite takes a log that is gone for one that never was: the mirror knows better."""
    database, _ = paths(tmp_path)
    store = Store(str(tmp_path), TARGET)
    store.put("a", "a")
    store.checkpoint()
    store.put("b", "b")
    store.commit([])
    kept = {side: open(database + side, "rb").read() for side in ("", "-wal")}
    store.close()
    with open(database, "wb") as file:
        file.write(kept[""])
    with open(database + "-wal", "wb") as file:
        file.write(kept["-wal"][:-1])
    keys, news = held(tmp_path)
    assert keys == ["a", "b"] and "commits, its mirror of" in news


def test_a_stop_at_each_step_of_taking_over(tmp_path):
    """And of making the mirror anew after it: the next start finds all there is."""
    database, _ = paths(tmp_path)
    store_with(tmp_path, "a", "b", "c")
    steps = 0
    while True:
        damage(database)
        seen = 0

        def stop(operation, path, last=steps):
            nonlocal seen
            if path.startswith(os.path.dirname(database)):
                seen += 1
                if seen > last:
                    raise Stop

        durable.set_fault(stop)
        try:
            Store(str(tmp_path), TARGET).close()
        except Stop:
            pass
        finally:
            durable.set_fault(None)
        done = seen <= steps
        assert held(tmp_path)[0] == ["a", "b", "c"], steps
        assert same(tmp_path), steps
        if done:
            break
        steps += 1
    assert steps > 8, "the fault was never installed"
    left = set(os.listdir(os.path.dirname(database)))
    assert not {name for name in left if ".new" in name}, left


def test_a_disk_that_refuses_the_mirror_delays_nothing(tmp_path):
    _, mirror = paths(tmp_path)

    def refuse(operation, path):
        if path.startswith(mirror):
            raise sqlite3.OperationalError("disk I/O error")

    durable.set_fault(refuse)
    store_with(tmp_path, "a", "b")
    assert not os.path.exists(mirror)
    with Store(str(tmp_path), TARGET) as store:
        durable.set_fault(None)
        store.put("c", "c")
        store.commit([])
        assert not os.path.exists(mirror), "it is not tried at each commit"
        store._mirror._again_at = 0.0  # a minute later
        store.put("d", "d")
        store.commit([])
        assert same(tmp_path)
    assert held(tmp_path) == (["a", "b", "c", "d"], "")


def test_a_full_disk_gets_the_mirrors_space_first(tmp_path):
    _, mirror = paths(tmp_path)
    with Store(str(tmp_path), TARGET) as store:
        assert os.path.exists(mirror)
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL

        def refuse(operation, path):
            if operation == "commit" and os.path.exists(mirror):
                raise full

        durable.set_fault(refuse)
        store.put("a", "a")
        store.commit([])
        durable.set_fault(None)
        assert not os.path.exists(mirror)
    assert held(tmp_path) == (["a"], "")
    assert same(tmp_path)


def test_dead_letters_that_are_marked_are_marked_in_both(tmp_path):
    simple(tmp_path)
    from test_dead_letters import refusing

    receiver = MemoryReceiver(before=refusing(3, 4))
    assert receiver.identity == TARGET
    Agent(tmp_path, receiver).run()
    database, _ = paths(tmp_path)
    assert mark(os.path.dirname(database), Choice(), "retry") == 2
    assert same(tmp_path)
    remove(database)
    receiver.before = None
    Agent(tmp_path, receiver).run()
    with Store(str(tmp_path), TARGET) as store:
        assert store.count("dead") == 0


def test_damage_between_two_rounds_loses_and_doubles_nothing(tmp_path):
    """The database is destroyed again and again while its spool grows."""
    database, mirror = paths(tmp_path)
    receiver = MemoryReceiver()
    writer = make_writer(tmp_path)
    for number in range(8):
        write_metrics(writer, 5, number * 5)
        Agent(tmp_path, receiver, max_events=2).run()
        for path in [database, mirror][number % 2 :: 2]:
            (remove if number % 3 == 0 else damage)(path)
    writer.close()
    Agent(tmp_path, receiver, max_events=2).run()
    (seqs,) = receiver.events.values()
    assert list(seqs) == list(range(1, len(seqs) + 1)) and len(seqs) >= 41
    assert receiver.repeats == 0, "the mirror was behind"
