"""`wandb.Artifact`: files under a name, collected here, copied into the spool when the artifact is logged."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from spoolagent.writers.run import list_files
from spoolagent.writers.wandb_errors import refuse
from spoolagent.writers.wandb_values import config_value

_LEGAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


class Artifact:
    """A named set of files. Their content is read when the artifact is logged, not when they are added."""

    def __init__(
        self,
        name: str,
        type: str,  # noqa: A002 - W&B's name
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
        incremental: bool = False,
        use_as: str | None = None,
        storage_region: str | None = None,
        digest_algorithm: str = "MD5",
    ) -> None:
        if not name or not _LEGAL.issuperset(name) or name in (".", ".."):
            raise ValueError(
                "Artifact name may only contain alphanumeric characters, dashes, underscores, and dots."
                f" Invalid name: {name!r}"
            )
        if len(name) > 128:
            raise ValueError(f"Artifact name is longer than 128 characters: {name!r}")
        if incremental:
            refuse("an incremental wandb.Artifact")
        del use_as, storage_region, digest_algorithm  # of the server's store
        self.name, self.type, self.description = name, type, description
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.aliases: list[str] = []
        self.tags: list[str] = []
        self._files: dict[str, str] = {}
        self._final = False
        self._temp: Any = None

    def _add(self, inside: str, source: str, *, replace: bool) -> None:
        if self._final:
            raise ValueError("the artifact was logged: make a new one for a new version")
        inside = os.path.normpath(inside).lstrip("/")
        if inside in (".", "..") or inside.startswith("../") or "\\" in inside:
            raise ValueError(f"{inside!r} is not a path inside the artifact")
        if not replace and self._files.get(inside, source) != source:
            raise ValueError(f"Cannot add the same path twice: {inside!r}")
        self._files[inside] = source

    def add_file(
        self,
        local_path: str,
        name: str | None = None,
        is_tmp: bool | None = False,
        skip_cache: bool | None = False,
        policy: str | None = "mutable",
        overwrite: bool = False,
    ) -> None:
        """Adds a file. Raises ValueError when it is not there."""
        del is_tmp, skip_cache, policy
        path = os.path.abspath(os.fspath(local_path))
        if not os.path.isfile(path):
            raise ValueError(f"Path is not a file: {local_path!r}")
        self._add(os.fspath(name) if name else os.path.basename(path), path, replace=overwrite)

    def add_dir(
        self,
        local_path: str,
        name: str | None = None,
        skip_cache: bool | None = False,
        policy: str | None = "mutable",
        merge: bool = False,
    ) -> None:
        """Adds all files below a directory. Raises ValueError when it is none."""
        del skip_cache, policy
        path = os.path.abspath(os.fspath(local_path))
        if not os.path.isdir(path):
            raise ValueError(f"Path is not a directory: {local_path!r}")
        for inside, source in list_files(path):
            self._add(os.path.join(os.fspath(name or ""), inside), source, replace=merge)

    @contextmanager
    def new_file(
        self, name: str, mode: str = "x", encoding: str | None = None, policy: str = "mutable"
    ) -> Iterator[IO[Any]]:
        """A new file of the artifact, open for writing."""
        del policy
        if self._temp is None:
            import tempfile

            self._temp = tempfile.TemporaryDirectory(prefix="spoolagent-")
        path = os.path.join(self._temp.name, os.path.normpath("/" + name)[1:])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(path, mode, encoding=encoding) as file:
                yield file
        except FileExistsError as error:
            raise ValueError(f"File with name {name!r} already exists at {path!r}") from error
        self._add(name, path, replace="x" not in mode)

    def remove(self, item: str) -> None:
        """Takes a file out again. Raises FileNotFoundError when it is not in."""
        if self._files.pop(os.path.normpath(item), None) is None:
            raise FileNotFoundError(f"No such file or directory: {item!r}")

    def listing(self) -> list[tuple[str, str]]:
        """(path inside, path here) of each file; from now on nothing can be added."""
        self._final = True
        return sorted(self._files.items())

    def fields(self, aliases: list[str]) -> dict[str, Any]:
        """The fields of the `artifact` event besides its files."""
        made: dict[str, Any] = {"name": self.name, "kind": self.type, "path": self.name, "aliases": aliases}
        metadata = config_value(self.metadata)
        if self.description is not None:
            made["description"] = str(self.description)
        if self.tags:
            made["tags"] = list(self.tags)
        return {**made, "metadata": metadata} if metadata else made

    def wait(self, timeout: int | None = None) -> "Artifact":
        """Nothing to wait for."""
        del timeout
        return self

    def finalize(self) -> None:
        """From now on nothing can be added."""
        self._final = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        refuse(f"wandb.Artifact.{name}", "offline there is no server to ask")


def resolve_aliases(aliases: Any) -> list[str]:
    """The aliases, "latest" always among them."""
    given = [aliases] if isinstance(aliases, str) else list(aliases or ())
    return [*dict.fromkeys([*map(str, given), "latest"])]
