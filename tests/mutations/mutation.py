"""What a mutation is, and how it is put into a tree."""

import ast
from dataclasses import dataclass
from pathlib import Path

INVARIANTS = {
    1: "Conservation",
    2: "No invention",
    3: "Effective once",
    4: "Order",
    5: "Cursor safety",
    6: "Isolation",
    7: "Containment",
    8: "Liveness",
    9: "Bounds",
    10: "Confinement",
}
"""As DESIGN.md numbers them."""


class NotApplicable(Exception):
    """The text that a mutation changes is not there exactly once: adapt the mutation to the code."""


@dataclass(frozen=True)
class Mutation:
    """One deliberate break: `old` becomes `new`, and then one of `tests` fails."""

    invariant: int
    name: str
    """Unique, short: for `--only` and the table."""
    breaks: str
    """What the product does wrong then, in plain words."""
    room: str
    """The folder (all its modules are searched, so code may move within it) or the one file, from the root."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Ids below tests/; at least one of them must fail."""

    def file(self, root: Path) -> Path:
        """The file that holds the old text. Raises NotApplicable unless it is there exactly once in the room."""
        room = root / self.room
        if not room.exists():
            raise NotApplicable(f"{self.name}: there is no {self.room}")
        found = {}
        for path in sorted(room.rglob("*.py")) if room.is_dir() else [room]:
            if count := path.read_text().count(self.old):
                found[path] = count
        if sum(found.values()) != 1:
            places = ", ".join(f"{count} in {path.relative_to(root)}" for path, count in found.items())
            raise NotApplicable(
                f"{self.name}: its old text must be found once in {self.room}, is there: {places or 'nowhere'}\n"
                f"{self.old}"
            )
        return next(iter(found))

    def changed(self, root: Path) -> tuple[Path, str]:
        """The file and its mutated content. Raises NotApplicable, and SyntaxError when the result is no Python."""
        path = self.file(root)
        text = path.read_text().replace(self.old, self.new)
        ast.parse(text, str(path))
        return path, text
