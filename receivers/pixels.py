"""Raw pixels to PNG, and the size of an encoded image. Standard library only, so that no receiver needs Pillow.

The same pixels give the same bytes: what a receiver writes again after a crash is identical.
"""

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # grey, grey + alpha, RGB, RGBA
_LARGEST = 2**31 - 1


def encode_png(pixels: bytes, height: int, width: int, channels: int) -> bytes:
    """A PNG of 8-bit rows of interleaved channels (1 grey, 2 grey + alpha, 3 RGB, 4 RGBA).

    Raises ValueError when the sizes do not fit, or the image is empty (PNG knows no empty one).
    """
    stride = width * channels
    if channels not in _COLOR_TYPE or not (0 < height <= _LARGEST and 0 < width <= _LARGEST):
        raise ValueError(f"an image of {height} x {width} pixels with {channels} channels cannot be a PNG")
    if len(pixels) != height * stride:
        raise ValueError(f"{len(pixels)} bytes are not {height} x {width} pixels with {channels} channels")
    view = memoryview(pixels)
    rows = b"".join(b"\0" + view[i : i + stride] for i in range(0, len(pixels), stride))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPE[channels], 0, 0, 0)
    return b"".join(
        (
            PNG_SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(rows, 6)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a PNG, GIF, BMP or JPEG, or None when it is none of them, or damaged."""
    try:
        if data.startswith(PNG_SIGNATURE):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", data, 6)
        elif data.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", data, 18)
            height = abs(height)  # negative when the rows go from top to bottom
        elif data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        else:
            return None
    except struct.error:
        return None
    return height, width


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at < len(data):
        marker, kind, length = struct.unpack_from(">BBH", data, at)
        if marker != 0xFF:
            return None
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        at += 2 + length
    return None
