"""All mutations, and the page about them."""

from mutations import alive, conserved, contained, once, rooms, trackers
from mutations.mutation import INVARIANTS, Mutation

ALL: tuple[Mutation, ...] = (
    *conserved.MUTATIONS,
    *once.MUTATIONS,
    *contained.MUTATIONS,
    *alive.MUTATIONS,
    *trackers.MUTATIONS,
    *rooms.MUTATIONS,
)

_HEAD = """\
# What the tests notice

A test that cannot fail proves nothing. Each line below is a deliberate break of the product; `make mutations` puts
them in, one at a time, into a copy of the tree, and runs the tests named beside it, which must fail. The numbers are
those of the invariants. This page is written by `python tests/mutations/run.py --markdown`; the mutations themselves
are in `tests/mutations/`.
"""


def chosen(words: list[str]) -> list[Mutation]:
    """The mutations whose name or invariant's number is among `words`; all of them without any."""
    known = {m.name for m in ALL} | {str(number) for number in INVARIANTS}
    if unknown := [word for word in words if word not in known]:
        raise SystemExit(f"no such mutation or invariant: {', '.join(unknown)} (see --list)")
    return [m for m in ALL if not words or m.name in words or str(m.invariant) in words]


def markdown() -> str:
    """The page docs/mutations.md."""
    lines = [
        _HEAD,
        "| invariant | mutation | what is broken | in | the test that fails |",
        "|---|---|---|---|---|",
    ]
    for m in sorted(ALL, key=lambda m: m.invariant):
        tests = "<br>".join(f"`{test}`" for test in m.tests)
        lines.append(
            f"| {m.invariant} {INVARIANTS[m.invariant]} | {m.name} | {m.breaks} | `{m.room}` | {tests} |"
        )
    return "\n".join(lines) + "\n"
