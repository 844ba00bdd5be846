"""Files cut and bits flipped, byte by byte; all positions with SPOOLAGENT_EVERY_BYTE=1, else a sample."""

import pytest
from sizes import EVERY_BYTE as EVERY

SLICES = 8 if EVERY else 1
"""Into how many tests the positions of a large file are dealt out, so that all cores have some."""
in_slices = pytest.mark.parametrize("part", range(SLICES))


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def flip(whole, at):
    """With one bit changed, another one at each byte."""
    changed = bytearray(whole)
    changed[at] ^= 1 << ((at * 5 + at // 8) % 8)
    return bytes(changed)


def sampled(size, step, part=None):
    """Every position, of the whole or of one part; else one in each `step`, at a place that moves."""
    if EVERY:
        return range(size) if part is None else range(part, size, SLICES)
    return sorted({min(at + at // step % step, size - 1) for at in range(0, size, step)})


def damages(whole, step=1, part=None):
    """(kind, position, bytes): cut there, and with one bit of that byte flipped."""
    for at in sampled(len(whole), step, part):
        yield "cut", at, whole[:at]
        yield "flipped", at, flip(whole, at)
