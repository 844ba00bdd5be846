"""Rows, steps and summaries of the W&B receivers, without any bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wandb_help import read_log

from spoolagent.receivers.wandb_log import BLOCK_SIZE, FILE_HEADER, encode_log
from spoolagent.receivers.wandb_names import file_part, folder_name, given_run_id, run_id
from spoolagent.receivers.wandb_rows import Point, Rows
from spoolagent.receivers.wandb_summary import Latest, Summary, definition


def point(values, step=None, *, close=None, at=1):
    texts = {name: json.dumps(value, separators=(",", ":")) for name, value in values.items()}
    return Point(
        values=texts, step=step, at_ns=at, stamp=(at, "w", at), close=step is None if close is None else close
    )


def closed(rows, *calls, writer="w"):
    made = [row for call in calls for row in rows.add(writer, call)]
    made += rows.close_all()
    return [(row.step, {name: json.loads(text) for name, text in row.values.items()}) for row in made]


def test_equal_steps_and_distinct_names_are_one_row():
    got = closed(Rows(), point({"a": 1}, 1), point({"b": 2}, 1), point({"a": 3}, 2))
    assert got == [(1, {"a": 1, "b": 2, "global_step": 1}), (2, {"a": 3, "global_step": 2})]


def test_a_repeated_name_at_an_equal_step_is_a_row_of_its_own():
    got = closed(Rows(), point({"a": 1}, 1), point({"b": 5}, 1), point({"a": 2}, 1), point({"b": 6}, 1))
    assert got == [(1, {"a": 1, "b": 5, "global_step": 1}), (2, {"a": 2, "b": 6, "global_step": 1})]


def test_no_value_of_a_smaller_step_is_dropped():
    got = closed(Rows(), point({"a": 1}, 10), point({"a": 2}, 3), point({"a": 3}, -7), point({"a": 4}, 12))
    assert [step for step, _ in got] == [10, 11, 12, 13]
    assert [row["global_step"] for _, row in got] == [10, 3, -7, 12]
    assert [row["a"] for _, row in got] == [1, 2, 3, 4]


@pytest.mark.parametrize("api", ["native", "wandb"])
def test_the_largest_step_leaves_room_for_the_rows_that_follow(api):
    rows = Rows()
    rows.begin("w", api, None)
    got = closed(
        rows, point({"a": 1}, 2**62), point({"a": 2}, 2**63 - 1), point({"a": 3}, 2), point({"b": 4}, 3)
    )
    assert [step for step, _ in got] == [2**62, 2**62 + 1, 2**62 + 2, 2**62 + 3]
    assert [row["global_step"] for _, row in got[1:]] == [2**63 - 1, 2, 3]


def test_each_event_without_a_step_is_a_row():
    got = closed(Rows(), point({"a": 1}), point({"b": 2}), point({"a": 3}, 7), point({"c": 4}))
    assert got == [(0, {"a": 1}), (1, {"b": 2}), (7, {"a": 3, "global_step": 7}), (8, {"c": 4})]


def test_rows_of_wandb_are_those_of_its_log():
    rows = Rows()
    rows.begin("w", "wandb", None)
    got = closed(
        rows,
        point({"a": 1}),
        point({"b": 2}, close=False),
        point({"c": 3}),
        point({"d": 4}, 5),
        point({"d": 5}, 5),
        point({"n": {"x": 1}}, 5),
        point({"n": {"y": 2}}, 5),
        point({"e": 6}),
        point({"f": 7}, 2),
        point({}),
    )
    assert got == [
        (0, {"a": 1}),
        (1, {"b": 2, "c": 3}),
        (5, {"d": 5, "n": {"x": 1, "y": 2}, "e": 6}),
        (6, {"f": 7, "global_step": 2}),
    ]


def test_wandb_steps_without_and_with_number_meet():
    rows = Rows()
    rows.begin("w", "wandb", None)
    assert closed(rows, point({"a": 1}, close=False), point({"b": 2}, 0, close=True)) == [
        (0, {"a": 1, "b": 2})
    ]


def test_the_next_life_of_a_run_closes_the_row_that_a_killed_one_left():
    rows = Rows()
    rows.begin("w0", "native", None)
    made = list(rows.add("w0", point({"a": 1}, 7)))
    rows = Rows(rows.save())
    made += rows.begin("w1", "native", None, attempt=2)
    made += rows.begin("w2", "native", 1, attempt=2)
    for writer, step in (("w1", 8), ("w2", 8), ("w1", 9)):
        made += rows.add(writer, point({"a": step}, step))
    assert [(row.step, row.values["a"]) for row in made] == [(7, "1"), (8, "8")]
    rows = Rows(rows.save())
    assert rows.begin("w3", "native", 1, attempt=2) == []


def test_streams_never_share_a_row_and_ranks_are_named():
    rows = Rows()
    rows.begin("w0", "native", 0)
    rows.begin("w1", "native", 1)
    made = []
    for step in (1, 2):
        for writer in ("w0", "w1"):
            made += rows.add(writer, point({"a": step}, step))
    made += rows.close_all()
    assert [row.step for row in made] == [1, 2, 3, 4]
    assert [(row.values.get("rank"), row.values["a"], row.values["global_step"]) for row in made] == [
        (None, "1", "1"),
        ("1", "1", "1"),
        (None, "2", "2"),
        ("1", "2", "2"),
    ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("vw"),
            st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), min_size=1),
            st.none() | st.integers(-3, 5),
        ),
        max_size=40,
    ),
    st.integers(1, 40),
)
def test_nothing_is_lost_and_saving_in_between_changes_nothing(calls, cut):
    def run(pause):
        rows, made = Rows(), []
        for number, (writer, values, step) in enumerate(calls):
            if pause is not None and number % pause == 0:
                rows = Rows(json.loads(json.dumps(rows.save())))
            made += rows.add(writer, point(values, step, at=number))
        return made + list(rows.close_all())

    made = run(None)
    assert made == run(cut)
    steps = [row.step for row in made]
    assert steps == sorted(set(steps))
    got = [(n, t, row.values.get("global_step")) for row in made for n, t in row.values.items() if n in "abc"]
    want = [(n, str(v), None if s is None else str(s)) for _, values, s in calls for n, v in values.items()]
    assert sorted(got, key=str) == sorted(want, key=str)


def test_image_lists_are_joined():
    parts = [
        {"_type": "images/separated", "count": 1, "filenames": [name], "captions": [name.upper()]}
        for name in ("p", "q")
    ]
    got = closed(
        Rows(),
        point({"im": parts[0]}, 1),
        point({"im": parts[1]}, 1),
        point({"im": {"_type": "image-file"}}, 1),
    )
    assert got[0][1]["im"] == {
        "_type": "images/separated",
        "count": 2,
        "filenames": ["p", "q"],
        "captions": ["P", "Q"],
    }
    assert got[1] == (2, {"im": {"_type": "image-file"}, "global_step": 1})


def test_summary_follows_its_definitions():
    summary = Summary()
    for data in (
        {"name": "val/*", "summary": "min,max"},
        {"name": "val/acc", "summary": "best,mean,last,first", "goal": "maximize"},
        {"name": "hide", "summary": "none"},
        {"name": "x", "step_metric": "epoch"},
    ):
        assert summary.define(definition(data))
        assert not summary.define(definition(data))
    rows = [
        {"val/loss": 3, "val/acc": 0.5, "hide": 1},
        {"val/loss": 1, "val/acc": 0.75},
        {"val/loss": 2, "val/acc": 0.25},
    ]
    for seq, row in enumerate(rows):
        summary = Summary(json.loads(json.dumps(summary.save())))
        summary.row({name: json.dumps(value) for name, value in row.items()}, (seq, "w", seq))
    got = {name: json.loads(text) for name, text in summary.latest.items().items()}
    assert got == {
        "val/loss": {"min": 1, "max": 3},
        "val/acc": {"best": 0.75, "mean": 0.5, "last": 0.25, "first": 0.5},
    }
    values = {"epoch": "4"}
    summary.complete(values)
    values = {"x": "1"}
    summary.complete(values)
    assert values == {"x": "1", "epoch": "4"}


def test_an_unknown_summary_is_refused():
    with pytest.raises(ValueError, match="unknown summary 'median'"):
        definition({"name": "a", "summary": "median"})


def test_the_latest_wins_in_any_order():
    latest = Latest()
    assert latest.put("a", "1", (5, "w", 1))
    assert not latest.put("a", "2", (4, "z", 9))
    assert latest.put("a", "3", (5, "w", 2))
    assert latest.put("b", None, (5, "w", 3))
    assert not latest.put("b", "4", (5, "w", 2))
    assert Latest.load(json.loads(json.dumps(latest.save()))).items() == {"a": "3"}


def test_run_ids():
    assert run_id("site1", "run1") == "site1--run1"
    assert run_id("site-1", "0" * 32) == "site-1--" + "0" * 32
    pairs = [
        ("a", "b--c"),
        ("a--b", "c"),
        ("a-", "b"),
        ("a", "b__c"),
        ("a.b", "c"),
        ("a_b", "c"),
        ("a", "b"),
        ("x" * 60, "yyyy"),
    ]
    made = [run_id(site, run) for site, run in pairs]
    assert len(set(made)) == len(made)
    for made_id in made:
        assert len(made_id) <= 64
        assert made_id.replace("-", "").replace("_", "").isalnum()
    assert given_run_id("abc") == "abc"
    assert given_run_id("a.b") != given_run_id("a_b")


@given(st.text("ab-_.", min_size=1, max_size=6), st.text("ab-_.", min_size=1, max_size=6), st.data())
def test_run_ids_do_not_collide(site, run, data):
    other = data.draw(
        st.tuples(st.text("ab-_.", min_size=1, max_size=6), st.text("ab-_.", min_size=1, max_size=6))
    )
    legal = all(name[0] in "ab" for name in (site, run, *other))
    if legal and (site, run) != other:
        assert run_id(site, run) != run_id(*other)


def test_file_names_stay_inside():
    assert file_part("train/im") == "train/im"
    assert file_part("../x\0/./ü?") == "_/x_/_/__"
    assert len(file_part("k" * 300)) == 80
    assert folder_name(1_700_000_000_999_999_999, "id") == "offline-run-20231114_221320-id"


@given(
    st.lists(
        st.binary(max_size=300)
        | st.sampled_from([0, 7, 8, 32_754, 32_755, 32_761, 32_768, 70_000]).map(bytes),
        max_size=12,
    ),
    st.data(),
)
def test_log_bytes_do_not_depend_on_how_they_are_appended(records, data):
    whole = encode_log(0, records)
    cut = data.draw(st.integers(0, len(records)))
    first = encode_log(0, records[:cut])
    assert first + encode_log(len(first), records[cut:]) == whole
    assert read_log(whole) == (records, 0)


@pytest.mark.parametrize("left", range(9))
def test_the_end_of_a_block(left):
    first = bytes(BLOCK_SIZE - len(FILE_HEADER) - 7 - left)
    data = encode_log(0, [first, b"second", b""])
    assert len(encode_log(0, [first])) == BLOCK_SIZE - left
    assert read_log(data) == ([first, b"second", b""], 0)
