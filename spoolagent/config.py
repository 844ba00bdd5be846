"""Settings: a TOML file, then the environment, then flags, become the frozen values of `spoolagent.settings`.

Strict: an unknown key, a wrong type and a value out of range are errors that name the file and the key.
Only the command line calls this; the core never reads the environment or a file of settings.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spoolagent.config_receivers import receiver_from_argument, receiver_from_table
from spoolagent.config_secrets import find_secrets
from spoolagent.config_values import Kind, duration, nearest, switch, text, texts
from spoolagent.errors import UsageError
from spoolagent.settings import AgentSettings, ReceiverSettings, ServeSettings, ShipSettings

DEFAULT_FILE = "spoolagent.toml"
"""Read from the working directory when it is there and no other file was given."""
MAX_FILE_BYTES = 1 << 20
_DAY_S = 86_400.0

KEYS: Mapping[str, Kind] = {
    "spool": text,
    "agent.sweep_interval": duration(0.05, 3600),
    "agent.stale_after": duration(20, 7 * _DAY_S),  # a writer renews its LIVE every 10 s
    "agent.presume_dead_after": duration(1, 366 * _DAY_S),
    "agent.patience": duration(0, _DAY_S),
    "agent.stuck_after": duration(10, 7 * _DAY_S),
    "agent.poll": switch,
    "ship.to": text,
    "serve.to": texts,
}
"""Every key outside `[receivers]`, with what it may be."""

ENVIRONMENT: Mapping[str, str] = {
    "SPOOLAGENT_SPOOL": "spool",
    "SPOOLAGENT_SWEEP_INTERVAL": "agent.sweep_interval",
    "SPOOLAGENT_STALE_AFTER": "agent.stale_after",
    "SPOOLAGENT_PRESUME_DEAD_AFTER": "agent.presume_dead_after",
    "SPOOLAGENT_PATIENCE": "agent.patience",
    "SPOOLAGENT_STUCK_AFTER": "agent.stuck_after",
    "SPOOLAGENT_POLL": "agent.poll",
    "SPOOLAGENT_SHIP_TO": "ship.to",
    "SPOOLAGENT_SERVE_TO": "serve.to",
}
"""Environment variables of the agent, with the keys that they set."""
WRITERS_ENVIRONMENT = ("SITE", "RUN", "DURABILITY", "ATTEMPT", "RANK", "CONFIG")
"""Further SPOOLAGENT_* variables that mean something (to training processes, and `SPOOLAGENT_CONFIG`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All settings, checked. `spool` is "" and the targets are empty where nothing sets them."""

    file: str | None
    spool: str
    agent: Mapping[str, Any]
    ship_to: str | None
    serve_to: tuple[str, ...]
    receivers: Mapping[str, ReceiverSettings]
    sources: Mapping[str, str]
    """Where each key that is set comes from: the file, an environment variable or a flag."""
    warnings: tuple[str, ...]
    """What is allowed but unwise; `config check` prints it."""

    def agent_settings(self) -> AgentSettings:
        """The agent's settings. Raises UsageError when no spool is named."""
        if not self.spool:
            raise UsageError(
                f"no spool: give --spool DIR, set SPOOLAGENT_SPOOL, or `spool` in {DEFAULT_FILE}"
            )
        return AgentSettings(spool=self.spool, **self.agent)

    def ship_settings(self, *, once: bool) -> ShipSettings:
        """The settings of `ship`. Raises UsageError without a target."""
        agent = self.agent_settings()
        if self.ship_to is None:
            raise UsageError(f"no target: give --to TARGET, or [ship] to = ... in {DEFAULT_FILE}")
        if os.path.realpath(self.ship_to) == os.path.realpath(agent.spool):
            raise UsageError(
                f"{self.sources['ship.to']}: the target {self.ship_to} is the spool itself: choose another"
            )
        return ShipSettings(agent=agent, target=self.ship_to, once=once)

    def serve_settings(self, *, give_up_after_s: float | None = None) -> ServeSettings:
        """The settings of `serve` and `replay`. Raises UsageError without a receiver, or with one given twice."""
        agent = self.agent_settings()
        if not self.serve_to:
            raise UsageError(f"no receiver: give --to RECEIVER, or [serve] to = [...] in {DEFAULT_FILE}")
        where = self.sources["serve.to"]
        chosen = [receiver_from_argument(argument, self.receivers, where) for argument in self.serve_to]
        twice = {one.name for one in chosen if sum(other.spec == one.spec for other in chosen) > 1}
        if twice:
            raise UsageError(f"{where}: {', '.join(sorted(twice))} is given twice: leave one out")
        return ServeSettings(agent=agent, receivers=tuple(chosen), give_up_after_s=give_up_after_s)


def load_config(file: str | None, env: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """The settings of this call. `file` is --config; `flags` maps keys to what flags say, None for not given.

    Raises UsageError for anything that is not right.
    """
    path = _find_file(file, env)
    raw = {} if path is None else read_file(path)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, value, where in (*_from_file(raw, path or ""), *_from_env(env), *_from_flags(flags)):
        values[key] = KEYS[key](value, where)
        sources[key] = where
    tables = raw.get("receivers", {})
    receivers = {
        name: receiver_from_table(name, t, f"{path}: receivers.{name}") for name, t in tables.items()
    }
    return Config(
        file=path,
        spool=os.path.abspath(os.path.expanduser(values["spool"])) if "spool" in values else "",
        agent=_agent(values),
        ship_to=values.get("ship.to"),
        serve_to=values.get("serve.to", ()),
        receivers=receivers,
        sources=sources,
        warnings=tuple(_warnings(path, raw, env)),
    )


def _agent(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of AgentSettings; its defaults stand where nothing is set."""
    found = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if section == "agent":
            found[name if name == "poll" else f"{name}_s"] = value
    return found


def _find_file(file: str | None, env: Mapping[str, str]) -> str | None:
    given = file or env.get("SPOOLAGENT_CONFIG")
    if given:
        return given
    return DEFAULT_FILE if os.path.exists(DEFAULT_FILE) else None


def read_file(path: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises UsageError when it cannot be read, is too large or is not TOML."""
    try:
        with open(path, "rb") as handle:
            data = handle.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file: make one with 'spoolagent config init {path}'") from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}: check the path, its owner and mode"
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path} has more than {MAX_FILE_BYTES} bytes: that is no configuration file")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None


def _from_file(raw: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any, str]]:
    """(key, value, where) of everything outside `[receivers]`. Raises UsageError for an unknown key."""
    sections = {key.partition(".")[0] for key in KEYS} | {"receivers"}
    for name, value in raw.items():
        if name not in sections:
            raise UsageError(f"{path}: unknown key {name!r}: {nearest(name, sections)}")
        if name in KEYS:
            yield name, value, f"{path}: {name}"
            continue
        if not isinstance(value, dict):
            raise UsageError(f"{path}: {name}: expected a table, written [{name}]")
        if name != "receivers":
            yield from _from_section(name, value, path)


def _from_section(section: str, table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any, str]]:
    known = [key.partition(".")[2] for key in KEYS if key.startswith(f"{section}.")]
    for name, value in table.items():
        if name not in known:
            raise UsageError(f"{path}: unknown key '{section}.{name}': {nearest(name, known)}")
        yield f"{section}.{name}", value, f"{path}: {section}.{name}"


def _from_env(env: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    for variable, key in ENVIRONMENT.items():
        if env.get(variable):
            yield key, env[variable], variable


def _from_flags(flags: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    for key, value in flags.items():
        if value is not None and value != []:
            yield key, value, "--" + key.rpartition(".")[2].replace("_", "-")


def _warnings(path: str | None, raw: Mapping[str, Any], env: Mapping[str, str]) -> Iterator[str]:
    secrets: Sequence[str] = find_secrets(raw)
    for key in secrets:
        yield (
            f"{path}: {key} looks like a secret: put it in the environment of the service "
            "(MLFLOW_TRACKING_PASSWORD, WANDB_API_KEY; systemd: EnvironmentFile=)"
        )
    if secrets and path is not None and os.stat(path).st_mode & 0o077:
        yield f"{path} holds a secret and others can read it: chmod 600 {path}"
    spool = raw.get("spool")
    if isinstance(spool, str) and not os.path.isabs(os.path.expanduser(spool)):
        yield f"{path}: spool = {spool!r} is relative: it depends on the directory in which the agent starts"
    known = [*ENVIRONMENT, *(f"SPOOLAGENT_{name}" for name in WRITERS_ENVIRONMENT)]
    for variable in env:
        if variable.startswith("SPOOLAGENT_") and variable not in known:
            yield f"{variable} in the environment means nothing: {nearest(variable, known)}"
