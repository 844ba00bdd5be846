"""Names and tags that MLflow makes up: a run's name, an experiment's id, what the process says about itself."""

import hashlib
import os
import sys

import orjson

USER = "mlflow.user"
RUN_NAME = "mlflow.runName"
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"

_FIRST = """amber brisk calm candid clear copper crisp dapper deft eager early fair fleet frank fresh gentle glad
golden grand hardy keen kind lively lucid lunar mellow mild misty neat nimble noble patient plain polar proud quick
quiet rapid rosy rustic silver smooth solar solid spry steady still stout sunny swift tidy true vivid warm wry"""
_SECOND = """acorn aspen badger beech birch bison brook canyon cedar clover comet condor coral crane creek curlew delta
dune ember falcon fern finch fjord glade gorge grove harbor heron hill ibex island jay kestrel lagoon lark linden
maple marten meadow mesa otter pine plover prairie quartz raven reef ridge robin spruce swan tern thistle tundra
valley vole willow wren"""


def new_run_name() -> str:
    """A name for a run that was given none. Takes nothing from the caller's random generators."""
    rand = int.from_bytes(os.urandom(8), "big")
    rand, number = divmod(rand, 1000)
    firsts, seconds = _FIRST.split(), _SECOND.split()
    rand, second = divmod(rand, len(seconds))
    return f"{firsts[rand % len(firsts)]}-{seconds[second]}-{number}"


def experiment_id(name: str) -> str:
    """The id of the experiment: "0" for Default, else 18 digits that follow from the name."""
    if name == "Default":
        return "0"
    digest = hashlib.sha256(name.encode(errors="replace")).digest()
    return str(10**17 + int.from_bytes(digest[:8], "big") % (9 * 10**17))


def context_tags() -> dict[str, str]:
    """The tags by which MLflow says who ran what: user and script, then those of MLFLOW_RUN_CONTEXT."""
    tags = {
        USER: os.environ.get("MLFLOW_TRACKING_USERNAME") or _user(),
        "mlflow.source.name": (sys.argv[0] if getattr(sys, "argv", None) else "") or "<console>",
        "mlflow.source.type": "LOCAL",
    }
    try:
        more = orjson.loads(os.environ.get("MLFLOW_RUN_CONTEXT") or "{}")
    except orjson.JSONDecodeError:
        more = {}
    return tags | ({str(k): str(v) for k, v in more.items()} if isinstance(more, dict) else {})


def _user() -> str:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        if user := os.environ.get(name):
            return user
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return "unknown"
