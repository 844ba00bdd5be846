"""A spool's events, read back; a clock that both sides of a differential test share; what TensorBoard shows."""

import errno
import io
import os
import struct

from spoolagent.contract import Batch, Stream
from spoolagent.format.events import check, parse_event
from spoolagent.format.header import read_header
from spoolagent.format.layout import iter_streams, list_segments, segment_name, stream_dir
from spoolagent.format.lines import decode_line
from spoolagent.testing import MemoryState

START_NS = 1_700_000_000_123_456_789


class Clock:
    """time.time and time.time_ns, standing still until `tick`."""

    def __init__(self, monkeypatch):
        self.reset()
        monkeypatch.setattr("time.time_ns", lambda: self.now_ns)
        monkeypatch.setattr("time.time", lambda: self.now_ns / 10**9)  # rounds once, as the receiver does

    def reset(self):
        self.now_ns = START_NS

    def tick(self, ns=1_234_567_891):
        self.now_ns += ns


def full_disk(*_, **__):
    """What any call says whose disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_spool(spool):
    """Stream key -> (header, its events). Every line's checksum, seq and payload are checked."""
    found = {}
    for key in iter_streams(str(spool)):
        folder = stream_dir(str(spool), key)
        events = []
        for first in list_segments(folder):
            with open(os.path.join(folder, segment_name(first)), "rb") as file:
                lines = file.read().splitlines()
            events += [e for e in map(parse_event, map(decode_line, lines)) if e is not None]
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert [check(e) for e in events] == [None] * len(events)
        assert events[0].type == "run_start"
        found[key] = (read_header(folder), events)
    return dict(sorted(found.items(), key=lambda item: item[1][0].created_ns))


def only(spool, *types):
    """The data of the events of these types (default: all but start and end) of all streams, in order."""
    events = [e for _, stream in read_spool(spool).values() for e in stream]
    return [e.data for e in events if (e.type in types if types else e.type not in ("run_start", "run_end"))]


def fields(spool, *types):
    """As `only`, without what every line has."""
    common = ("seq", "time", "type", "crc")
    return [{k: v for k, v in data.items() if k not in common} for data in only(spool, *types)]


def replay(spool, logdir, size=7):
    """Delivers the whole spool to a TensorBoardReceiver in batches; returns the run's directory."""
    from spoolagent.receivers.tensorboard import TensorBoardReceiver

    receiver, state = TensorBoardReceiver(str(logdir), {}), MemoryState()
    receiver.open(state)
    run = None
    for key, (header, events) in read_spool(spool).items():
        run = os.path.join(str(logdir), key.site, key.run)
        blobs = os.path.join(str(spool), "sites", key.site, "blobs")
        stream = Stream(
            key=key,
            role=header.role,
            attempt=header.attempt,
            created_ns=header.created_ns,
            spool=header.spool,
        )
        for at in range(0, len(events), size):
            outcome = receiver.deliver(
                Batch(stream=stream, events=tuple(events[at : at + size]), blobs=blobs)
            )
            assert not outcome.dead
            assert not outcome.skipped
            state.commit()
    receiver.close()
    return run


def shown(run):
    """What TensorBoard's own reader finds in a run's directory: (sub-run, kind, tag) -> its points."""
    from tb_help import accumulate

    found = {}
    for folder, _, names in os.walk(run):
        if not any("tfevents" in name for name in names):
            continue
        events = accumulate(folder).Reload()
        sub, tags = os.path.relpath(folder, run), events.Tags()
        for tag in tags["scalars"]:
            found[sub, "scalar", tag] = [(*_at(p), bits(p.value)) for p in events.Scalars(tag)]
        for tag in tags["histograms"]:
            found[sub, "histogram", tag] = [
                (*_at(p), repr(p.histogram_value)) for p in events.Histograms(tag)
            ]
        for tag in tags["images"]:
            found[sub, "image", tag] = [
                (*_at(p), p.height, p.width, pixels(p.encoded_image_string)) for p in events.Images(tag)
            ]
        for tag in tags["tensors"]:
            found[sub, "tensor", tag] = [
                (*_at(p), p.tensor_proto.SerializeToString(deterministic=True)) for p in events.Tensors(tag)
            ]
        for tag in tags["audio"]:
            found[sub, "audio", tag] = [
                (*_at(p), p.content_type, p.sample_rate, p.length_frames, p.encoded_audio_string)
                for p in events.Audio(tag)
            ]
        if tags["graph"]:
            found[sub, "graph", ""] = events.Graph().SerializeToString(deterministic=True)
        for tag in tags["run_metadata"]:
            found[sub, "run metadata", tag] = events.RunMetadata(tag).SerializeToString(deterministic=True)
        for name in (n for n in _files(folder) if "tfevents" not in n):  # the projector's
            with open(os.path.join(folder, name), "rb") as file:
                found[sub, "file", name] = file.read()
        for plugin in ("hparams", "text", "scalars", "pr_curves", "tensor", "custom_scalars", "mesh"):
            for tag, content in _plugin(events, plugin).items():
                found[sub, plugin, tag] = content
    return found


def _files(folder):
    for above, _, names in os.walk(folder):
        if above == folder or not any("tfevents" in name for name in names):
            yield from (os.path.relpath(os.path.join(above, name), folder) for name in names)


def _plugin(events, name):
    try:
        found = events.PluginTagToContent(name)
    except KeyError:
        return {}
    if name == "hparams":  # its messages have maps, which are serialized in any order
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        read = HParamsPluginData.FromString
        return {tag: read(data).SerializeToString(deterministic=True) for tag, data in found.items()}
    return found


def _at(point):
    return point.wall_time, point.step


def bits(value):
    """A double's bits, so that NaN equals NaN and 0.0 is not -0.0."""
    return "nan" if value != value else struct.pack(">d", value).hex()


def pixels(encoded):
    """Mode, size and pixels of an encoded image."""
    from PIL import Image

    image = Image.open(io.BytesIO(encoded))
    return image.mode, image.size, image.tobytes()
