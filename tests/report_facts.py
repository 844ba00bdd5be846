"""What the long tests count, from every process of pytest-xdist into one table and one JSON file.

A test calls `add("schedules", kills=3)` as often as it likes. What it told goes with its report to the process that
prints, where numbers of the same section and name are summed and lists are joined. SPOOLAGENT_REPORT names the file
that gets them; `make torture` reads it.
"""

import json
import os

PROPERTY = "spoolagent-facts"
_told = {}


def add(section, **facts):
    """Tells facts of the running test: numbers, lists, or dicts of them."""
    merge(_told, {section: facts})


def take():
    """What was told since the last call."""
    found = dict(_told)
    _told.clear()
    return found


def merge(into, facts):
    """Adds facts to those that are known."""
    for name, value in facts.items():
        if isinstance(value, dict):
            merge(into.setdefault(name, {}), value)
        else:
            into[name] = into[name] + value if name in into else value


def counted(what, positions):
    """The positions, each counted as tried: "byte positions tested" of the report."""
    for position in positions:
        add("byte positions tested", **{what: 1})
        yield position


def unworthy(facts):
    """Why a run proves nothing, one line each: idempotence is only tested where deliveries were repeated."""
    schedules = facts.get("schedules", {})
    if schedules.get("schedules", 0) < 100:
        return []
    names = ("repeated deliveries", "power cuts", "kills", "commits")
    return [f"no {name} in {schedules['schedules']} schedules" for name in names if not schedules.get(name)]


def lines(facts):
    """The table, as lines of Markdown."""
    rows = [(section, name, value) for section in sorted(facts) for name, value in _flat("", facts[section])]
    return ["| what | | how many |", "|---|---|---|", *(f"| {a} | {b} | {_shown(c)} |" for a, b, c in rows)]


def _flat(prefix, facts):
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{name}: ", value)
        else:
            yield prefix + name, value


def _shown(value):
    if isinstance(value, list):
        return "<br>".join(map(str, value))
    return f"{value:,}"


def write(path, facts):
    """Keeps them."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=2, sort_keys=True)
        file.write("\n")
