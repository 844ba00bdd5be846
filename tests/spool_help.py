"""Small helpers for tests that write and read spools."""

import os
import subprocess
import sys
import time

from plain_reader import read_stream

from spoolagent.format import layout
from spoolagent.format.stream import StreamOptions, StreamWriter

ENV_KEYS = (
    "SPOOLAGENT_SPOOL",
    "SPOOLAGENT_SITE",
    "SPOOLAGENT_RUN",
    "SPOOLAGENT_DURABILITY",
    "SPOOLAGENT_ATTEMPT",
)


def make_writer(spool, site="site-1", run="run-1", *, start=None, **options):
    """A stream writer with small defaults for tests."""
    keys = {k: options.pop(k) for k in ("role", "attempt", "launch", "warn") if k in options}
    payload = {"api": "native", **(start or {})}
    return StreamWriter(str(spool), site, run, lambda: payload, options=StreamOptions(**options), **keys)


def write_metrics(writer, count, first=0):
    """Appends `count` metrics events: loss = step / 8 at step first, first + 1, ..."""
    for step in range(first, first + count):
        writer.append("metrics", {"metrics": {"loss": step / 8}, "step": step})


def streams(spool):
    """All streams of a spool as {key: (events, end)}, read by the plain reader."""
    spool = str(spool)
    return {key: read_stream(layout.stream_dir(spool, key)) for key in layout.iter_streams(spool)}


class NoHints:
    """The part of a worker's hints that is the same wherever a test says itself when streams are looked at."""

    sees_all = False

    def watch(self, key):
        """Nothing is watched."""

    def forget(self, key):
        """Nothing was."""


def clean_env(**changes):
    """The environment without any of our variables, plus `changes`."""
    env = {k: v for k, v in os.environ.items() if k not in ENV_KEYS and not k.startswith("SPOOLAGENT_")}
    env.update({k: str(v) for k, v in changes.items()})
    return env


def python(code, *args, **env):
    """Starts a Python process that runs `code`, with SPOOLAGENT_* from `env` only."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=clean_env(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition, timeout_s=60.0, what="condition"):
    """Polls until `condition()` is true; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        time.sleep(0.02)
