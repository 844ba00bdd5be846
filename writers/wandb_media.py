"""W&B's media types: what a user wraps in `wandb.Image(...)` and gives to `log`, as events.

Nothing is encoded here: pixels stay raw, files stay as they are. Content is taken when the object is made.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from spoolagent.writers.run import optional
from spoolagent.writers.wandb_errors import refuse
from spoolagent.writers.wandb_values import friendly, to_numpy

_INLINE = 128 << 10
"""Bytes of text from which it goes to a blob: escaped, it may grow sixfold, and a line holds a MiB."""


class Part(NamedTuple):
    """One event of a `log` call besides its numbers; step and commit are added when it is written."""

    kind: str
    fields: dict[str, Any]
    data: bytes | None = None
    """What becomes the event's `blob`."""
    files: tuple[tuple[str, bytes], ...] = ()
    """What becomes its `files`: further blobs, by name."""


class WBValue:
    """Base of all that is not plain JSON."""

    _log_type: ClassVar[str] = ""
    MAX_ITEMS: ClassVar[int | None] = None

    def parts(self, key: str, step: int) -> list[Part]:
        """The events of this value, logged as `key`."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """What reading the summary shows for it."""
        return {"_type": self._log_type}


class Histogram(WBValue):
    """A distribution: from a sequence of numbers, or made already (`np_histogram`: counts and edges).

    Raises ValueError for more than 512 bins, or edges that are not one more than the counts.
    """

    MAX_LENGTH: ClassVar[int] = 512
    _log_type = "histogram"

    def __init__(
        self,
        sequence: Sequence[Any] | None = None,
        np_histogram: tuple[Any, Any] | None = None,
        num_bins: int = 64,
    ) -> None:
        if np_histogram:
            if len(np_histogram) != 2:
                raise ValueError(
                    "Expected np_histogram to be a tuple of (values, bin_edges) or sequence to be specified"
                )
            counts, edges = (part.tolist() if hasattr(part, "tolist") else part for part in np_histogram)
            self.histogram, self.bins = list(counts), list(edges)
            middles = [(a + b) / 2 for a, b in zip(self.bins, self.bins[1:], strict=False)]
            total = sum(c * m for c, m in zip(self.histogram, middles, strict=False))
            squares = sum(c * m * m for c, m in zip(self.histogram, middles, strict=False))
            low, high = (self.bins[0], self.bins[-1]) if self.bins else (0.0, 0.0)
        else:
            import numpy as np

            array = np.asarray(to_numpy(sequence) if hasattr(sequence, "detach") else sequence)
            made, bounds = np.histogram(array, bins=num_bins)
            self.histogram, self.bins = made.tolist(), bounds.tolist()
            total = float(array.sum(dtype=float)) if array.size else 0.0
            squares = float(np.square(array.astype(float)).sum())
            low, high = (
                (float(array.min()), float(array.max())) if array.size else (self.bins[0], self.bins[-1])
            )
        if len(self.histogram) > self.MAX_LENGTH:
            raise ValueError(f"The maximum length of a histogram is {self.MAX_LENGTH}")
        if len(self.histogram) + 1 != len(self.bins):
            raise ValueError("len(bins) must be len(histogram) + 1")
        self._sums = {
            "min": low,
            "max": high,
            "num": sum(self.histogram),
            "sum": total,
            "sum_squares": squares,
        }

    def parts(self, key: str, step: int) -> list[Part]:
        """A `histogram` event."""
        del step
        from spoolagent.format.values import metric_value

        numbers = {name: metric_value(value) for name, value in self._sums.items()}
        edges = [metric_value(edge) for edge in self.bins]
        counts = [metric_value(count) for count in self.histogram]
        if not counts:
            return [Part("custom", {"name": "wandb.value", "data": {"key": key, "value": self.to_json()}})]
        return [
            Part(
                "histogram", {"key": key, **numbers, "left": edges[0], "limits": edges[1:], "counts": counts}
            )
        ]

    def to_json(self, run: Any = None) -> dict[str, Any]:
        """As it stands in a history row."""
        del run
        return {"_type": self._log_type, "values": self.histogram, "bins": self.bins}

    def summary(self) -> dict[str, Any]:
        """The same."""
        return self.to_json()


class _File(WBValue):
    """A value that is one file: its bytes, how they are encoded, a caption."""

    _kind: ClassVar[str]

    def __init__(self, caption: str | None) -> None:
        self._caption = None if caption is None else str(caption)
        self._data = b""
        self._encoding = ""
        self._more: dict[str, Any] = {}

    def parts(self, key: str, step: int) -> list[Part]:
        """An event with the file as its blob."""
        del step
        fields = {"key": key, "encoding": self._encoding, **self._more, **optional(caption=self._caption)}
        return [Part(self._kind, fields, self._data)]


class Video(_File):
    """A video: a path, or an open binary file with its `format` (gif, mp4, webm, ogg).

    Raises NotSupportedError for raw frames: encoding them would hold up training.
    """

    EXTS: ClassVar[tuple[str, ...]] = ("gif", "mp4", "webm", "ogg")
    _log_type = "video-file"
    _kind = "video"

    def __init__(
        self,
        data_or_path: Any,
        caption: str | None = None,
        fps: int | None = None,
        format: str | None = None,  # noqa: A002 - W&B's name
    ) -> None:
        super().__init__(caption)
        del fps  # W&B uses it for raw frames only
        encoding: str | None = format
        path = os.fspath(data_or_path) if isinstance(data_or_path, (str, os.PathLike)) else None
        if path is not None:
            encoding = os.path.splitext(path)[1][1:].lower()
        elif not hasattr(data_or_path, "read"):
            refuse("wandb.Video of raw frames", "write a file and give its path")
        elif encoding is None:
            raise ValueError("wandb.Video requires a `format` argument when initializing with an io object.")
        if encoding not in self.EXTS:
            raise ValueError("wandb.Video accepts {} formats".format(", ".join(self.EXTS)))
        source: Any = data_or_path
        self._data = read_file(path) if path is not None else source.read()
        self._encoding = encoding


class Audio(_File):
    """A sound: the path of a file, or samples (-1..1, frames x channels) with their `sample_rate`."""

    _log_type = "audio-file"
    _kind = "audio"

    def __init__(self, data_or_path: Any, sample_rate: int | None = None, caption: str | None = None) -> None:
        super().__init__(caption)
        if isinstance(data_or_path, (str, os.PathLike)):
            path = os.fspath(data_or_path)
            self._data = read_file(path)
            self._encoding = os.path.splitext(path)[1][1:].lower() or "wav"
            self._more = optional(sample_rate=sample_rate)
            return
        if sample_rate is None:
            raise ValueError(
                'Argument "sample_rate" is required when instantiating wandb.Audio with raw data.'
            )
        self._encoding = "wav"
        self._data, frames, channels = _wav(data_or_path, int(sample_rate))
        self._more = {"sample_rate": int(sample_rate), "channels": channels, "frames": frames}


def _wav(samples: Any, rate: int) -> tuple[bytes, int, int]:
    """A WAV file of 16-bit samples, with its numbers of frames and channels."""
    import io
    import wave

    import numpy as np

    array = np.asarray(to_numpy(samples) if hasattr(samples, "detach") else samples)
    if array.ndim == 1:
        array = array[:, None]
    if array.dtype.kind == "f":
        array = np.rint(np.clip(array, -1.0, 1.0) * 32767)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(array.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(array.astype("<i2").tobytes())
    return buffer.getvalue(), int(array.shape[0]), int(array.shape[1])


_BASE = '<base target="_blank"><link rel="stylesheet" type="text/css" href="https://app.wandb.ai/normalize.css" />'


class Html(WBValue):
    """A page: HTML text, an open file, or the path of an `.html` file. `inject` adds W&B's style sheet."""

    _log_type = "html-file"

    def __init__(self, data: Any, inject: bool = True, data_is_not_path: bool = False) -> None:
        name = os.fspath(data) if isinstance(data, (str, os.PathLike)) else ""
        source: Any = data
        if name and not data_is_not_path and name.endswith(".html") and os.path.isfile(name):
            self.html = read_file(name).decode()
        elif isinstance(data, str):
            self.html = data
        elif hasattr(source, "read"):
            if hasattr(source, "seek"):
                source.seek(0)
            self.html = source.read()
        else:
            raise ValueError("data must be a string or an io object")
        if inject:
            self.inject_head()

    def inject_head(self) -> None:
        """Adds W&B's style sheet to the page's head."""
        front, head, rest = self.html.partition("<head>")
        if head:
            self.html = f"{front}<head>{_BASE}{rest}".strip()
            return
        front, html, rest = self.html.partition("<html>")
        self.html = (f"{front}<html><head>{_BASE}</head>{rest}" if html else _BASE + self.html).strip()

    def parts(self, key: str, step: int) -> list[Part]:
        """A `text` event that is the run's file `media/html/<key>_<step>_<hash>.html`."""
        data = self.html.encode(errors="replace")
        name = "".join(c if c.isalnum() or c in "._- " else "_" for c in key)[:80]
        path = f"media/html/{name}_{step}_{hashlib.sha256(data).hexdigest()[:20]}.html"
        return [text_part({"key": key, "path": path}, data.decode())]


def text_part(fields: dict[str, Any], text: str) -> Part:
    """A `text` event, its text in a blob when it is long."""
    data = text.encode()
    return Part("text", {**fields, "text": text}) if len(data) < _INLINE else Part("text", fields, data)


class Classes:
    """The names of an image's classes: [{"id": 1, "name": "cat"}, ...]."""

    def __init__(self, class_set: Sequence[dict[str, Any]]) -> None:
        for item in class_set:
            if "id" not in item or "name" not in item:
                raise AssertionError("each class needs an id and a name")
        self.class_set = [friendly(item) for item in class_set]


def read_file(path: str) -> bytes:
    """The bytes of a file. Raises FileNotFoundError (a ValueError in W&B, for media)."""
    with open(path, "rb") as file:
        return file.read()
