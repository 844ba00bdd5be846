"""Spools that earlier releases wrote stay readable: every event of every golden spool, value by value."""

import json
from pathlib import Path

import pytest
from plain_reader import read_stream

from spoolagent.format import layout
from spoolagent.format.events import TYPES, check
from spoolagent.format.reader import StreamReader
from spoolagent.format.spool import open_spool

GOLDEN = sorted(p for p in (Path(__file__).parent / "golden").iterdir() if p.is_dir())


def read_all(spool):
    found = {}
    for key in layout.iter_streams(str(spool)):
        reader = StreamReader(layout.stream_dir(str(spool), key), at_home=False)
        events = []
        while True:
            chunk = reader.read(2000)
            assert not chunk.lost
            events += chunk.events
            if chunk.state != "more":
                break
        found[key] = (events, chunk.state, [bad.data for bad in chunk.bad])
    return found


def test_there_is_a_golden_spool_of_format_1():
    assert "format-1" in [p.name for p in GOLDEN]


@pytest.mark.parametrize("spool", GOLDEN, ids=lambda p: p.name)
def test_a_golden_spool_reads_as_it_did(spool):
    assert open_spool(str(spool)).uuid
    expected = json.loads((spool.parent / f"{spool.name}.json").read_text())
    found = read_all(spool)
    assert {str(key): [e.data for e in events] for key, (events, _, _) in found.items()} == expected["events"]
    assert {str(key): state for key, (_, state, _) in found.items()} == expected["states"]
    for events, _, _ in found.values():
        assert [check(event) for event in events if check(event)] == []
    assert {e.type for events, _, _ in found.values() for e in events} == TYPES


@pytest.mark.parametrize("spool", GOLDEN, ids=lambda p: p.name)
def test_the_plain_reader_reads_it_the_same(spool):
    for key, (events, state, _) in read_all(spool).items():
        plain, end = read_stream(layout.stream_dir(str(spool), key))
        assert plain == [event.data for event in events]
        assert end == {"closed": "closed", "dead": "dead"}[state]


def test_torn_bytes_are_handed_out_for_quarantine():
    spool = Path(__file__).parent / "golden" / "format-1"
    torn = {key.writer: bad for key, (_, _, bad) in read_all(spool).items() if bad}
    assert torn == {"w-killed": [b'{"seq":22,"ti']}
