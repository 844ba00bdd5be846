"""How runs are called in W&B: the options' templates, and what a run's first event says."""

from collections.abc import Mapping
from typing import Any

from spoolagent.contract import Options, Stream
from spoolagent.errors import UsageError
from spoolagent.format.events import Event
from spoolagent.receivers import wandb_names as names
from spoolagent.receivers.wandb_records import RunInfo

OPTIONS = {
    "project": "W&B project of all runs; default: the run's own project or experiment, else `uncategorized`",
    "entity": "W&B entity (team) of all runs; default: the run's own, else that of the key",
    "group": "template of the group; default: the run's own, for NVFLARE's writers `{run}`",
    "name": "template of the display name; default: the run's own, else `{site}-{run}`",
    "run_id": "template of W&B's run id; default `{site}--{run}`, with a hash where it would be ambiguous",
    "job_type": "job type of all runs; default: the run's own",
}
"""Options of both W&B receivers. Templates know {site}, {run}, {name} (the display name) and {project}."""
_FIELDS = {"site": "", "run": "", "name": "", "project": ""}
DEFAULT_PROJECT = "uncategorized"


class Templates:
    """The options, checked."""

    def __init__(self, options: Options) -> None:
        self._options: dict[str, str] = {}
        for key in OPTIONS:
            value = options.get(key)
            if value is None:
                continue
            if not isinstance(value, str) or not value:
                raise UsageError(f"wandb: option {key} is a text that is not empty, got {value!r}")
            self._options[key] = value
            if key in ("group", "name", "run_id"):
                self.fill(key, _FIELDS)
        if "run_id" in self._options and "{run}" not in self._options["run_id"]:
            raise UsageError("wandb: option run_id must hold {run}: without it all runs would become one")

    def fill(self, key: str, fields: Mapping[str, str]) -> str | None:
        """The option's text with its fields filled in, or None when it is not set. Raises UsageError."""
        template = self._options.get(key)
        if template is None:
            return None
        try:
            return template.format_map(fields)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise UsageError(
                f"wandb: option {key} = {template!r}: it may hold {{site}}, {{run}}, {{name}}, {{project}}"
            ) from error

    def plain(self, key: str) -> str | None:
        """An option that is no template."""
        return self._options.get(key)

    def wandb_id(self, site: str, run: str) -> str:
        """The W&B id of a run."""
        text = self.fill("run_id", {"site": site, "run": run, "name": run, "project": ""})
        return names.run_id(site, run) if text is None else names.given_run_id(text)


def run_info(templates: Templates, stream: Stream, first: Event | None) -> RunInfo:
    """A run's facts, from the first event that is delivered of it."""
    data: Mapping[str, Any] = first.data if first is not None and first.type == "run_start" else {}
    site, run = stream.key.site, stream.key.run
    federated = data.get("api") == "nvflare"
    own = data.get("name")
    name = f"{site}-{own or run}" if federated or not own else own
    project = templates.plain("project") or data.get("project") or data.get("experiment") or DEFAULT_PROJECT
    fields = {"site": site, "run": run, "name": name, "project": project}
    return RunInfo(
        wandb_id=templates.wandb_id(site, run),
        entity=templates.plain("entity") or data.get("entity"),
        project=project,
        group=templates.fill("group", fields) or data.get("group") or (run if federated else None),
        job_type=templates.plain("job_type") or data.get("job_type"),
        name=templates.fill("name", fields) or name,
        notes=data.get("notes"),
        labels=[str(label) for label in data.get("labels") or []],
        host=data.get("host"),
        start_ns=first.wall_ns if first is not None else stream.created_ns,
    )


def saved_info(saved: Mapping[str, Any]) -> RunInfo:
    """The facts as they were put into the state."""
    return RunInfo(**saved)
