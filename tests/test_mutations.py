"""The mutations stay applicable, and their runner tells a break that is noticed from one that is not.

`make mutations` tries all of them; this only looks whether each one still fits the code and names tests that exist.
"""

import ast
from pathlib import Path

import pytest
from mutations import catalogue
from mutations.mutation import INVARIANTS, Mutation, NotApplicable
from mutations.run import Copy, Failed

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("mutation", catalogue.ALL, ids=lambda m: m.name)
def test_it_fits_the_code(mutation):
    path, text = mutation.changed(ROOT)
    assert text != path.read_text()


def functions(name):
    tree = ast.parse((ROOT / "tests" / name).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_tests_that_they_name_exist():
    for mutation in catalogue.ALL:
        assert mutation.tests
        for test in mutation.tests:
            name, _, function = test.partition("::")
            assert function.partition("[")[0] in functions(name), test


def test_every_invariant_is_broken_in_several_ways():
    names = [mutation.name for mutation in catalogue.ALL]
    assert len(set(names)) == len(names)
    for number in INVARIANTS:
        assert len([m for m in catalogue.ALL if m.invariant == number]) >= 3, number


def test_the_page_is_what_the_catalogue_says():
    page = (ROOT / "docs" / "mutations.md").read_text()
    assert page == catalogue.markdown(), "python tests/mutations/run.py --markdown > docs/mutations.md"


def sample(**changes):
    plain = {
        "invariant": 10,
        "name": "sample",
        "breaks": "",
        "room": "spoolagent/format",
        "old": "return _LEGAL.fullmatch(name) is not None",
        "new": "return True",
        "tests": ("test_stream_writer.py::test_illegal_names_are_refused",),
    }
    return Mutation(**{**plain, **changes})


def test_the_runner_tells_noticed_from_not_noticed(tmp_path):
    copy = Copy(tmp_path)
    mutated = copy.root / "spoolagent" / "format" / "names.py"
    before = mutated.read_text()
    assert copy.try_out(sample()).killed
    assert mutated.read_text() == before
    assert not copy.try_out(sample(new="return bool(_LEGAL.fullmatch(name))")).killed
    with pytest.raises(Failed, match="did not run"):
        copy.try_out(sample(new="return illegal_name"))
    assert mutated.read_text() == before
    assert (copy.root / "spoolagent" / "receivers").is_symlink()
    assert (ROOT / "spoolagent" / "format" / "names.py").read_text() == before


@pytest.mark.parametrize("old", ["no such text anywhere", "return"])
def test_a_text_that_is_not_there_once_is_an_error(old):
    with pytest.raises(NotApplicable, match="must be found once"):
        sample(old=old).changed(ROOT)
