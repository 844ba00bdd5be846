"""Breaks of invariants 6 and 7: isolation, containment."""

from mutations.mutation import Mutation

SERVING = "spoolagent/serving"
FORMAT = "spoolagent/format"
SHIPPING = "spoolagent/shipping"
READER = "spoolagent/format/reader.py"

MUTATIONS = (
    # -- 6. isolation -------------------------------------------------------------------------------------
    Mutation(
        6,
        "one-run-stops-all",
        'a tracker that says "not now" to one run makes the others wait',
        SERVING,
        "task.retry_at = self.clock() + hold",
        "self._resume_at = task.retry_at = self.clock() + hold",
        ("test_worker.py::test_a_transient_failure_of_one_run_does_not_delay_another",),
    ),
    Mutation(
        6,
        "receivers-bug-ends-the-worker",
        "an exception that a receiver should not raise ends the worker",
        SERVING,
        "except Exception as error:\n            # Refused, or",
        "except Refused as error:\n            # Refused, or",
        ("test_worker.py::test_a_receiver_that_chokes_on_an_event_is_no_reason_to_stop",),
    ),
    Mutation(
        6,
        "refused-batch-dies-whole",
        "one refused event makes its whole batch a dead letter",
        SERVING,
        "            for half in halves(batch):\n                self._bisect(half, outcome)\n",
        "            outcome.dead.update({event.seq: str(error) for event in batch.events})\n",
        ("test_worker.py::test_a_refused_event_becomes_a_dead_letter_and_the_rest_goes_on",),
    ),
    Mutation(
        6,
        "busy-stream-keeps-all",
        "new streams are not looked for while one stream always has a next batch",
        SERVING,
        "if self._draining or self._clock() >= until:",
        "if self._draining:",
        ("test_worker_crash.py::test_a_tracker_slower_than_a_writer_keeps_no_other_run_waiting",),
    ),
    Mutation(
        6,
        "unreadable-folder-hides-all",
        "a directory that cannot be read ends the listing of all of them",
        FORMAT,
        "        except OSError as error:  # of one site, or for a moment: it must not hide the others\n",
        "        except ChildProcessError as error:\n",
        ("test_filesystem.py::test_a_directory_that_cannot_be_read_hides_no_other",),
    ),
    Mutation(
        6,
        "one-stream-stops-the-shipper",
        "a stream that cannot be shipped ends the whole sweep",
        SHIPPING,
        "        except SpoolError as error:\n            self._put_off(key, error)\n        else:",
        "        except SpoolError:\n            raise\n        else:",
        ("test_shipping.py::test_names_that_differ_by_case_are_refused_and_the_rest_goes_on",),
    ),
    Mutation(
        6,
        "huge-stream-keeps-the-shipper",
        "the shipper carries a huge stream to its end before the next one has its turn",
        SHIPPING,
        "if self._left <= 0 or self._should_stop():",
        "if self._should_stop():",
        ("test_shipping.py::test_a_huge_stream_gives_the_others_their_turn",),
    ),
    # -- 7. containment -----------------------------------------------------------------------------------
    Mutation(
        7,
        "end-forgets",
        "an `.end` that is written anew says nothing of the seqs that the old one knew of",
        "spoolagent/format",
        "max(measured.last, last_known(stream, first, measured))",
        "measured.last",
        ("test_reader.py::test_an_end_remembers_what_its_segment_lost",),
    ),
    Mutation(
        7,
        "later-format-read",
        "a segment of a later format is read as if it were of this one",
        f"{FORMAT}/header.py",
        "if type(number) is int and number > FORMAT:",
        "if type(number) is not int:",
        ("test_reader.py::test_a_newer_format_is_parked",),
    ),
    Mutation(
        7,
        "no-quarantine",
        "bad bytes are passed over and not kept aside",
        SERVING,
        "durable.write_file(path, piece.data)",
        "pass",
        ("test_worker.py::test_lost_seqs_and_bad_bytes_are_on_record",),
    ),
    Mutation(
        7,
        "bad-line-takes-the-next",
        "the line behind a bad one is skipped with it",
        READER,
        '        self._bad.append(Bad(self.position.segment, offset, line + b"\\n", reason))\n'
        "        self._take(len(line) + 1, self.position.next_seq)\n",
        '        self._bad.append(Bad(self.position.segment, offset, line + b"\\n", reason))\n'
        "        self._take(2 * len(line) + 2, self.position.next_seq)\n"
        '        return "more"\n',
        ("test_worker.py::test_lost_seqs_and_bad_bytes_are_on_record",),
    ),
    Mutation(
        7,
        "half-line-not-cut",
        "half a line of a full disk stays, and the next line is written behind it",
        FORMAT,
        "if not is_whole and actual != self.size:",
        "if not is_whole and actual != self.size:\n            actual = self.size\n        if False:",
        ("test_stream_writer.py::test_half_a_line_is_cut_back",),
    ),
    Mutation(
        7,
        "end-without-checksum",
        "a damaged `.end` is believed",
        FORMAT,
        '    if not has_valid_crc(line):\n        raise FormatError("checksum does not match")\n',
        "",
        ("test_reader.py::test_a_flipped_bit_at_every_byte_of_an_end_is_as_if_it_were_missing",),
    ),
    Mutation(
        7,
        "bad-line-ships-at-once",
        "the shipper does not read a bad line again, so a hole that heals is shipped",
        SHIPPING,
        'if not self._is_over(("bad", segment.first_seq, begin), why, 0.0):',
        "if segment is None:",
        ("test_shipping.py::test_a_bad_line_waits_then_ships_as_it_is",),
    ),
    Mutation(
        7,
        "torn-line-not-kept",
        "the torn last line of a dead writer is neither kept aside nor counted",
        READER,
        "if torn and self._parsed != key:",
        "if torn and self._parsed == key:",
        ("test_small_promises.py::test_the_torn_line_of_a_dead_writer_is_kept_aside",),
    ),
    Mutation(
        7,
        "repair-keeps-too-late",
        "a repair that is killed has written a damaged `.end` anew, and its old bytes are kept nowhere",
        "spoolagent/repair_stream.py",
        "            keep_aside(self._spool, *self._key, end_name(first), data=raw)\n"
        "            end_dead_stream(self._folder, self._watch)\n",
        "            end_dead_stream(self._folder, self._watch)\n"
        "            keep_aside(self._spool, *self._key, end_name(first), data=raw)\n",
        ("test_repair.py::test_a_repair_that_is_killed_at_any_step_and_repeated",),
    ),
)
