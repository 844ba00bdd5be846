"""Helpers of the command line's tests: spools made by the real writer, and the real command as a process."""

import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

from spoolagent.cli.main import run
from spoolagent.format.layout import StreamKey, iter_streams, segment_name, stream_dir
from spoolagent.format.stream import StreamOptions, StreamWriter

HOME = Path(__file__).resolve().parent.parent


def clean_env(**more):
    """The environment without SPOOLAGENT_* variables."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SPOOLAGENT_")}
    env.pop("FORCE_COLOR", None)
    env.pop("COLUMNS", None)  # pytest-xdist's workers have it
    return {**env, "NO_COLOR": "1", "TERM": "dumb", "WANDB_MODE": "offline", **more}


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def spoolagent(*args, cwd, env=None):
    """Runs `spoolagent ARGS` as a real process, as its users do."""
    command = [sys.executable, "-m", "spoolagent", *map(str, args)]
    environment = clean_env(**(env or {}))
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def forked(*args, cwd, env=None):
    """Runs `spoolagent ARGS` in a forked child: a process of its own, without the second that imports take."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        child = os.fork()
        if child == 0:
            _be_the_command(
                [str(arg) for arg in args], str(cwd), clean_env(**(env or {})), out.fileno(), error.fileno()
            )
        _, status = os.waitpid(child, 0)
        out.seek(0)
        error.seek(0)
        return Done(os.waitstatus_to_exitcode(status), out.read().decode(), error.read().decode())


def _be_the_command(args, cwd, env, out, error):
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(error, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        code = run(args)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


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
