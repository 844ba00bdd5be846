"""Opening a spool: its one file, `spool.json`, and the uuid in it."""

import os
import re
from typing import NamedTuple

import orjson

from spoolagent.errors import FormatError, NewerFormat, UsageError
from spoolagent.format.durable import make_dirs, write_file
from spoolagent.format.layout import FORMAT, SPOOL_FILE
from spoolagent.format.plain import NotPlain, open_plain

_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}")


class Spool(NamedTuple):
    """A spool that was opened: an absolute path and the uuid of the place."""

    path: str
    uuid: str


def open_spool(path: str) -> Spool:
    """The spool at `path`.

    Raises UsageError when there is none, NewerFormat when it was written in a later format, FormatError when
    `spool.json` is damaged.
    """
    path = os.path.abspath(path)
    file = os.path.join(path, SPOOL_FILE)
    try:
        with open_plain(file) as handle:
            raw = handle.read(1 << 16)
    except NotPlain:
        raise FormatError(f"{file} is no plain file: run 'spoolagent fsck --repair {path}'") from None
    except FileNotFoundError:
        what = "holds no spool.json" if os.path.isdir(path) else "does not exist"
        raise UsageError(
            f"{path} is not a spool: it {what}; give the directory that training wrote to"
        ) from None
    except NotADirectoryError:
        raise UsageError(
            f"{path} is a file, not a spool directory; give the directory that training wrote to"
        ) from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}; check its owner and mode") from error
    return Spool(path, _parse(raw, file))


def _parse(raw: bytes, file: str) -> str:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise FormatError(
            f"{file} is damaged ({error}); restore it from a backup or run 'spoolagent fsck --repair'"
        ) from error
    number = value.get("format") if isinstance(value, dict) else None
    if type(number) is int and number > FORMAT:
        raise NewerFormat(
            f"{file} says format {number}, this version reads format {FORMAT}: upgrade spoolagent"
        )
    uuid = value.get("spool") if isinstance(value, dict) else None
    if number != FORMAT or not isinstance(uuid, str) or _UUID.fullmatch(uuid) is None:
        raise FormatError(
            f'{file} is damaged: expected {{"format":1,"spool":"<uuid>"}}; run \'spoolagent fsck\''
        )
    return uuid


def create_spool(path: str) -> Spool:
    """The spool at `path`, made when there is none. Many processes may do this at once; all see one uuid.

    Raises UsageError when the place cannot be a spool, and what `open_spool` raises.
    """
    path = os.path.abspath(path)
    file = os.path.join(path, SPOOL_FILE)
    if not os.path.exists(file):
        try:
            make_dirs(path)
            rand = bytearray(os.urandom(16))
            rand[6], rand[8] = rand[6] & 0x0F | 0x40, rand[8] & 0x3F | 0x80
            text = rand.hex()
            uuid = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
            write_file(file, orjson.dumps({"format": FORMAT, "spool": uuid}) + b"\n", exclusive=True)
        except FileExistsError:
            pass  # another process made it first
        except NotADirectoryError:
            raise UsageError(
                f"{path} cannot be a spool: it or a part of it is a file; choose another path"
            ) from None
        except OSError as error:
            raise UsageError(
                f"{path} cannot be made a spool: {error.strerror}; choose a writable path"
            ) from error
    return open_spool(path)
