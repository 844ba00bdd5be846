"""Readers and crash simulation for the tests of file receivers."""

import copy
import hashlib
import os
import shutil
import struct
from contextlib import contextmanager
from unittest import mock

from spoolagent.testing import MemoryState, set_fault


class Killed(BaseException):
    """The process is gone; nothing may catch it."""


def tree(root):
    """Every file below root: relative path -> bytes."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found


def plant(root, files):
    """Makes root hold exactly these files."""
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    for name, data in files.items():
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


def clone(state):
    """A state that holds what `state` has committed: what a new process finds."""
    other = MemoryState()
    other._committed = copy.copy(state._committed)
    other.rollback()
    return other


@contextmanager
def killed_at(point, log=None):
    """Ends the 'process' at the point-th fault point."""
    left = [point]

    def fault(operation, path):
        if log is not None:
            log.append((operation, path))
        if left[0] == 0:
            raise Killed(operation)
        left[0] -= 1

    set_fault(fault)
    try:
        yield
    finally:
        set_fault(None)


@contextmanager
def without_fsync():
    """For tests that cut files at hundreds of places themselves: what reached the disk is theirs to say."""
    with mock.patch("os.fsync", return_value=None), mock.patch("os.fdatasync", return_value=None):
        yield


def cuts(before, after, order):
    """All trees that a crash can leave: the growth of the files, in the order of their writes, cut at each byte."""
    done = dict(before)
    for name in order:
        old = before.get(name, b"")
        assert after[name].startswith(old)
        for length in range(len(old), len(after[name])):
            yield {**done, name: after[name][:length]}
        done[name] = after[name]
    yield done


def records(path):
    """The Event messages of one event file, by tensorboard's own protocol buffers; CRCs are checked."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    with open(path, "rb") as file:
        data = file.read()
    at, events = 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        body = data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 8)[0] == masked_crc32c(data[at : at + 8])
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked_crc32c(body)
        events.append(Event.FromString(body))
        at += 16 + length
    return events


def event_files(folder):
    """The event files of one directory, in the order in which readers take them."""
    return sorted(os.path.join(folder, n) for n in os.listdir(folder) if "tfevents" in n)


def accumulate(folder):
    """An EventAccumulator that keeps everything."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = ("scalars", "tensors", "images", "histograms", "compressedHistograms", "audio")
    return EventAccumulator(str(folder), size_guidance=dict.fromkeys(names, 0))


def points(accumulator, tag):
    """(wall_time, step, value) of a scalar's points."""
    return [(p.wall_time, p.step, p.value) for p in accumulator.Reload().Scalars(tag)]


def f32(value):
    """The float32 nearest to value, as a float."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def put_blob(blobs, data):
    """Stores a blob; returns its reference."""
    digest = hashlib.sha256(data).hexdigest()
    os.makedirs(os.path.join(blobs, digest[:2]), exist_ok=True)
    with open(os.path.join(blobs, digest[:2], digest), "wb") as file:
        file.write(data)
    return {"sha256": digest, "size": len(data)}
