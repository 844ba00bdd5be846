"""Helpers of the command line's tests: spools made by the real writer, and the real command as a process."""

import os
import subprocess
import sys
from pathlib import Path

from spoolagent.format.layout import StreamKey, iter_streams, segment_name, stream_dir
from spoolagent.format.stream import StreamOptions, StreamWriter

HOME = Path(__file__).resolve().parent.parent


def clean_env(**more):
    """The environment without SPOOLAGENT_* variables."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SPOOLAGENT_")}
    env.pop("FORCE_COLOR", None)
    return {**env, "NO_COLOR": "1", "TERM": "dumb", "WANDB_MODE": "offline", **more}


def spoolagent(*args, cwd, env=None, timeout=120):
    """Runs `spoolagent ARGS` and returns the finished process, with text output."""
    return subprocess.run(
        [sys.executable, "-m", "spoolagent", *map(str, args)],
        cwd=cwd,
        env=clean_env(**(env or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def write_stream(
    spool,
    run="run-1",
    *,
    site="site-a",
    events=5,
    role="main",
    attempt=1,
    segment_bytes=16 << 20,
    end="finished",
    exit_code=0,
    close=True,
    fields=None,
):
    """One stream of `events` metrics events; returns its writer (closed unless told otherwise)."""
    start = {"api": "native", "name": "a name", "host": "h", "pid": 1, "attempt": attempt, **(fields or {})}
    options = StreamOptions(durability="process", segment_bytes=segment_bytes)
    stream = StreamWriter(str(spool), site, run, lambda: start, role=role, attempt=attempt, options=options)
    for step in range(events):
        stream.append("metrics", {"metrics": {"loss": 1 / (step + 1)}, "step": step})
    if end is not None:
        stream.append("run_end", {"status": end, "exit_code": exit_code})
    if close:
        stream.close()
    return stream


def key_of(stream):
    """Where a StreamWriter writes."""
    return StreamKey(stream.site, stream.run, stream.writer)


def segment_of(spool, key=None, first=1):
    """Path of a segment, by default the first of the spool's first stream."""
    key = key or next(iter_streams(str(spool)))
    return os.path.join(stream_dir(str(spool), key), segment_name(first))


def read(path):
    return Path(path).read_bytes()


def write(path, data):
    Path(path).write_bytes(data)


def write_and_die(spool, run="run-1", *, events=5, end=None, torn=b"", site="site-a"):
    """A process writes a stream and dies by SIGKILL, perhaps in the middle of a line. Returns the stream's key."""
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from cli_help import write_stream, segment_of, key_of\n"
        "spool, run, site, events, end, torn = sys.argv[2:]\n"
        "s = write_stream(spool, run, site=site, events=int(events), end=end or None, close=False)\n"
        "os.write(s._segment.fd, torn.encode())\n"
        "print(s.writer, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    args = [str(HOME / "tests"), str(spool), run, site, str(events), end or "", torn.decode()]
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    return StreamKey(site, run, done.stdout.strip())
