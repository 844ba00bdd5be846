"""A reader of format 1 written from docs/format.md alone. It imports nothing of spoolagent, on purpose."""

import hashlib
import json
import os
import re
import zlib

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def valid(line):
    """The object of a line with its newline, or None."""
    body, tail = line[:-19], line[-19:]
    if len(line) <= 1 << 20 and tail == b',"crc":"%08x"}\n' % zlib.crc32(body):
        return json.loads(line)
    return None


def read_stream(folder):
    """(events, how it ended: None, "closed" or "dead") of a stream directory; raises AssertionError on damage."""
    firsts = sorted(int(n[:20]) for n in os.listdir(folder) if re.fullmatch(r"\d{20}\.jsonl", n))
    events, prev, end = [], None, None
    for first in firsts:
        path = os.path.join(folder, f"{first:020d}.jsonl")
        raw = open(path, "rb").read()
        lines = raw.splitlines(keepends=True)
        header = valid(lines[0])
        assert (
            header["format"] == 1 and header["first"] == first == len(events) + 1 and header["prev"] == prev
        )
        assert header["writer"] == os.path.basename(folder) and NAME.match(header["run"])
        done = len(lines[0])
        for line in lines[1:]:
            item = valid(line) if line.endswith(b"\n") else None
            if item is None:
                break  # torn: only at the end of a dead writer's segment
            if "seal" in item:
                assert (
                    item["seal"] == len(events) and item["sha256"] == hashlib.sha256(raw[:done]).hexdigest()
                )
                end = "closed" if item["closed"] else None
            else:
                assert item["seq"] == len(events) + 1
                events.append(item)
            done += len(line)
        prev = hashlib.sha256(raw).hexdigest()
    side = os.path.join(folder, f"{firsts[-1]:020d}.end")
    if end is None and os.path.exists(side):
        said = valid(open(side, "rb").read())
        assert said["length"] == done and said["last"] == len(events)
        assert said["sha256"] == hashlib.sha256(raw[:done]).hexdigest()
        end = "dead"
    return events, end
