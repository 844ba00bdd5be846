"""Breaks the product on purpose, one mutation at a time, and expects the tests to notice: `make mutations`.

    python tests/mutations/run.py [--only NAME_OR_INVARIANT ...] [--jobs N] [--list | --markdown]

It works on copies in a temporary directory and never changes this tree. Exit codes: 0 every mutation was
noticed, 1 one survived, 2 the tests already fail without any, or a mutation no longer fits the code.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mutations import catalogue  # noqa: E402 - tests/ must be on the path first
from mutations.mutation import INVARIANTS, Mutation, NotApplicable  # noqa: E402

_COPIED = ("spoolagent", "writers", "receivers", "tests", "pyproject.toml")
_TEST_S = 120
"""A test that takes longer hangs, which counts as noticed."""
_FAILED = 1
"""pytest's exit code when tests ran and one failed, and that of pytest-timeout."""
_NO_PYTHON = (
    "NameError",
    "ImportError",
    "ModuleNotFoundError",
    "SyntaxError",
    "UnboundLocalError",
    "TypeError",
    "AttributeError",
)
"""Complaints that say that a mutation is ill made, not that a test noticed what it breaks."""


class Result(NamedTuple):
    """What became of one mutation."""

    mutation: Mutation
    killed: bool
    seconds: float
    why: str
    """What the test said."""
    output: str


class Failed(Exception):
    """Nothing can be said of the mutations; the message tells why."""


class Copy:
    """A copy of the tree, whose `spoolagent` is the one that is imported."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self._scratch = folder / "scratch"
        self.root.mkdir()
        for name in _COPIED:
            if (ROOT / name).is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, self.root / name, symlinks=True, ignore=ignore)
            else:
                shutil.copy2(ROOT / name, self.root / name)
        self._scratch.mkdir()
        code = "import spoolagent, spoolagent.receivers as r; print(spoolagent.__file__, r.__file__)"
        found = self._python("-c", code)
        if not all(path.startswith(f"{self.root}{os.sep}") for path in found.stdout.split() or [""]):
            raise Failed(f"another spoolagent than the copy's is imported: {found.stdout}{found.stderr}")

    def _python(self, *args: str) -> "subprocess.CompletedProcess[str]":
        env = {
            key: value for key, value in os.environ.items() if not key.startswith(("SPOOLAGENT_", "PYTEST_"))
        }
        env |= {
            "PYTHONPATH": str(self.root),
            # A mutation may be as long as the text that it replaces, and made in the same second.
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self._scratch),
        }
        return subprocess.run(
            [sys.executable, *args], cwd=self.root, env=env, capture_output=True, text=True, check=False
        )

    def pytest(self, ids: list[str], *more: str) -> "subprocess.CompletedProcess[str]":
        """Runs tests of the copy."""
        options = ("-q", "--tb=short", "-p", "no:cacheprovider", "--timeout", str(_TEST_S), *more)
        done = self._python("-m", "pytest", *options, *(f"tests/{name}" for name in ids))
        for left in self._scratch.iterdir():
            shutil.rmtree(left, ignore_errors=True)
        return done

    def check(self, ids: list[str]) -> None:
        """Raises Failed unless the tests pass as long as nothing is broken."""
        done = self.pytest(ids)
        if done.returncode:
            raise Failed(f"without any mutation these tests do not pass:\n{done.stdout}{done.stderr}")

    def try_out(self, mutation: Mutation) -> Result:
        """Puts a mutation in, runs its tests, and takes it out again. Raises NotApplicable, Failed."""
        path, text = mutation.changed(self.root)
        whole, began = path.read_text(), time.monotonic()
        path.write_text(text)
        try:
            done = self.pytest(list(mutation.tests), "-x")
        finally:
            path.write_text(whole)
        why = _why(done.stdout + done.stderr)
        if done.returncode not in (0, _FAILED) or why.startswith(_NO_PYTHON):
            raise Failed(f"{mutation.name}: the tests did not run:\n{done.stdout}{done.stderr}")
        return Result(mutation, done.returncode == _FAILED, time.monotonic() - began, why, done.stdout)


def _why(output: str) -> str:
    """The first line of what a test complained of, "" when none did."""
    lines = output.splitlines()
    if any("+ Timeout +" in line for line in lines):
        return f"it took longer than {_TEST_S} s"
    return next((line[1:].strip() for line in lines if line.startswith("E  ")), "")


def copies(folder: Path, count: int) -> "queue.SimpleQueue[Copy]":
    """As many copies of the tree."""
    made: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for number in range(count):
        (folder / str(number)).mkdir()
        made.put(Copy(folder / str(number)))
    return made


def run(mutations: list[Mutation], jobs: int) -> list[Result]:
    """Tries the mutations and prints a line for each. Raises NotApplicable, Failed."""
    with tempfile.TemporaryDirectory(prefix="spoolagent-mutations-") as name:
        free = copies(Path(name), jobs)

        def try_one(mutation: Mutation) -> Result:
            copy = free.get()
            try:
                result = copy.try_out(mutation)
            finally:
                free.put(copy)
            print(_line(result), flush=True)
            return result

        first = free.get()
        for mutation in mutations:
            mutation.changed(first.root)  # before any time is spent on the others
        ids = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
        began = time.monotonic()
        first.check(ids)
        print(f"{len(ids)} tests pass without a mutation ({time.monotonic() - began:.1f} s)", flush=True)
        free.put(first)
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(try_one, mutations))


def _line(result: Result) -> str:
    m = result.mutation
    what = "killed  " if result.killed else "SURVIVED"
    return f"{what} {result.seconds:6.1f} s  {m.invariant:2} {INVARIANTS[m.invariant]:15} {m.name:32} {result.why[:90]}"


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME_OR_INVARIANT")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the mutations")
    parser.add_argument("--markdown", action="store_true", help="print docs/mutations.md")
    args = parser.parse_args(arguments)
    mutations = catalogue.chosen(args.only)
    if args.markdown:
        print(catalogue.markdown(), end="")
        return 0
    if args.list:
        for m in mutations:
            print(f"{m.invariant:2} {m.name}: {m.breaks} ({m.room})")
        return 0
    began = time.monotonic()
    try:
        results = run(mutations, args.jobs)
    except (NotApplicable, Failed) as error:
        print(error, file=sys.stderr)
        return 2
    survived = [r for r in results if not r.killed]
    for result in survived:
        print(f"\n{result.mutation.name} survived: {result.mutation.breaks}\n{result.output}")
    print(
        f"{len(results)} mutations: {len(results) - len(survived)} killed, {len(survived)} survived"
        f" ({time.monotonic() - began:.0f} s)"
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
