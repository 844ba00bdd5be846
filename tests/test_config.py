"""Settings: file, environment, flags, in this order; strict about everything."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolagent.config import load_config
from spoolagent.config_secrets import has_password, hide_password
from spoolagent.config_values import parse_duration
from spoolagent.errors import UsageError
from spoolagent.settings import AgentSettings, ReceiverSettings

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "spoolagent.toml"


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "spoolagent.toml"
        path.write_text(text)
        return str(path)

    return write


def refused(file, env=None, flags=None):
    with pytest.raises(UsageError) as caught:
        load_config(file, env or {}, flags or {})
    return str(caught.value)


def test_nothing_set_gives_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {}, {"spool": "s"})
    assert config.agent_settings() == AgentSettings(spool=str(tmp_path / "s"))
    assert config.receivers == {}
    assert config.warnings == ()
    with pytest.raises(UsageError, match="no target: give --to TARGET"):
        config.ship_settings(once=False)
    with pytest.raises(UsageError, match="no receiver: give --to RECEIVER"):
        config.serve_settings()
    with pytest.raises(UsageError, match="no spool: give --spool DIR"):
        load_config(None, {}, {}).agent_settings()


def test_the_example_is_what_it_says():
    config = load_config(str(EXAMPLE), {}, {})
    assert config.agent_settings() == AgentSettings(spool="/var/lib/spoolagent/spool")
    assert config.ship_settings(once=True).target == "/mnt/server/spool"
    assert config.serve_settings().receivers == (
        ReceiverSettings(
            name="tb",
            spec="tensorboard:/srv/tensorboard",
            options={"directory": "{site}/{run}"},
            flush_interval_s=0.5,
        ),
        ReceiverSettings(name="mlflow", spec="mlflow:http://localhost:5000"),
    )
    assert config.receivers["archive"].flush_interval_s == 10.0
    assert config.warnings == ()


def test_flags_go_over_the_environment_over_the_file(toml):
    file = toml(
        'spool = "/from/file"\n[agent]\nsweep_interval = 2\npatience = "3s"\npoll = true\n[ship]\nto = "/t/file"'
    )
    env = {"SPOOLAGENT_SPOOL": "/from/env", "SPOOLAGENT_PATIENCE": "4s", "SPOOLAGENT_SWEEP_INTERVAL": ""}
    config = load_config(file, env, {"spool": "/from/flag", "ship.to": None})
    expected = AgentSettings(spool="/from/flag", sweep_interval_s=2.0, patience_s=4.0, poll=True)
    assert config.agent_settings() == expected
    assert config.ship_settings(once=False).target == "/t/file"
    assert config.sources["spool"] == "--spool"
    assert config.sources["agent.patience"] == "SPOOLAGENT_PATIENCE"
    assert config.sources["agent.sweep_interval"] == f"{file}: agent.sweep_interval"


def test_the_file_comes_from_the_environment_or_the_working_directory(toml, tmp_path, monkeypatch):
    file = toml('spool = "/s"')
    monkeypatch.chdir(tmp_path)
    assert load_config(None, {}, {}).file == "spoolagent.toml"
    os.rename(file, tmp_path / "other.toml")
    assert load_config(None, {}, {}).file is None
    assert load_config(None, {"SPOOLAGENT_CONFIG": "other.toml"}, {}).spool == "/s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spol = 1", "unknown key 'spol': did you mean 'spool'?"),
        (
            "[agent]\nsweep_intervall = 1",
            "unknown key 'agent.sweep_intervall': did you mean 'sweep_interval'?",
        ),
        ("[serve]\nfrom = 1", "unknown key 'serve.from': known are to"),
        ("[agnet]\n", "unknown key 'agnet': did you mean 'agent'?"),
        ("agent = 1", "agent: expected a table, written [agent]"),
        ("spool = 1", "spool: expected a text, got int"),
        ('spool = ""', "spool: '' is empty or has control characters"),
        ('[agent]\npatience = "soon"', "agent.patience: 'soon' is no duration"),
        ("[agent]\npatience = true", "agent.patience: True is no duration"),
        ("[agent]\npatience = nan", "agent.patience: nan is no duration"),
        ("[agent]\npatience = -1", "agent.patience: -1 is no duration"),
        ("[agent]\nstale_after = 5", "agent.stale_after: 5 is out of range: 20 to 604800 seconds"),
        ('[agent]\npoll = "maybe"', "agent.poll: 'maybe' is not true, false or \"auto\""),
        ("[serve]\nto = [1]", "serve.to[0]: expected a text, got int"),
        ("[serve]\nto = {}", "serve.to: expected a list of texts, got dict"),
        ("receivers = 1", "receivers: expected a table"),
        ("[receivers]\ntb = 1", "receivers.tb: expected a table, such as [receivers.tb]"),
        ("[receivers.tb]\n", "receivers.tb: `to` is missing"),
        ('[receivers."a b"]\nto = "jsonl:x"', "the name 'a b' is not legal"),
        (
            '[receivers.tb]\nto = "tensorbord:x"',
            "receivers.tb.to: unknown receiver kind 'tensorbord': did you mean 'tensorboard'?",
        ),
        ('[receivers.tb]\nto = "jsonl"', "receivers.tb.to: 'jsonl' is not kind:target"),
        ('[receivers.tb]\nto = "jsonl:"', "receivers.tb.to: 'jsonl:' has no target"),
        (
            '[receivers.tb]\nto = "jsonl:x"\nmax_event = 1',
            "receivers.tb.max_event: unknown key: did you mean 'max_events'?",
        ),
        ('[receivers.tb]\nto = "jsonl:x"\nflush_interval_s = 1', "did you mean 'flush_interval'?"),
        (
            '[receivers.tb]\nto = "jsonl:x"\nmax_events = 0',
            "receivers.tb.max_events: 0 is out of range: 1 to 100000",
        ),
        (
            '[receivers.tb]\nto = "jsonl:x"\nmax_events = 1.5',
            "receivers.tb.max_events: 1.5 is not a whole number",
        ),
        (
            '[receivers.tb]\nto = "jsonl:x"\nmax_events = true',
            "receivers.tb.max_events: True is not a whole number",
        ),
        ("a = ", "is not TOML"),
    ],
)
def test_what_is_wrong_names_file_and_key(toml, text, message):
    file = toml(text)
    said = refused(file)
    assert message in said
    assert said.startswith(file)


def test_files_that_cannot_be_configuration(tmp_path):
    assert "no such file: make one with 'spoolagent config init" in refused(str(tmp_path / "no.toml"))
    assert "cannot be read: Is a directory" in refused(str(tmp_path))
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    assert "has more than 1048576 bytes" in refused(str(large))
    large.write_bytes(b"\xff\xfe")
    assert "is not TOML" in refused(str(large))
    large.write_text("a = " + "[" * 100_000)
    assert "is not TOML" in refused(str(large))


def test_a_wrong_variable_or_flag_is_named(toml):
    assert refused(toml(""), {"SPOOLAGENT_PATIENCE": "x"}).startswith(
        "SPOOLAGENT_PATIENCE: 'x' is no duration"
    )
    assert refused(toml(""), {}, {"agent.sweep_interval": "1y"}).startswith(
        "--sweep-interval: '1y' is no duration"
    )


def test_receiver_arguments(toml):
    config = load_config(
        toml('spool = "/s"\n[receivers.tb]\nto = "tensorboard:/srv/tb"\nmax_events = 7\ndirectory = "x"'),
        {},
        {},
    )

    def serve(*to):
        flags = {"spool": "/s", "serve.to": list(to)}
        return load_config(config.file, {}, flags).serve_settings(give_up_after_s=5.0)

    settings = serve("tb", "jsonl:/x")
    assert settings.give_up_after_s == 5.0
    assert settings.receivers == (
        ReceiverSettings(name="tb", spec="tensorboard:/srv/tb", options={"directory": "x"}, max_events=7),
        ReceiverSettings(name="jsonl:/x", spec="jsonl:/x"),
    )
    for wrong, message in (
        ("tbb", "--to: no receiver is called 'tbb': did you mean 'tb'?"),
        ("mlflow", "--to: 'mlflow' needs a target: write mlflow:TARGET"),
        ("mlfow:http://x", "--to: unknown receiver kind 'mlfow': did you mean 'mlflow'?"),
    ):
        with pytest.raises(UsageError) as caught:
            serve(wrong)
        assert message in str(caught.value)
    with pytest.raises(UsageError, match=r"--to: tb, tensorboard:/srv/tb is given twice"):
        serve("tensorboard:/srv/tb", "tb")


def test_several_receivers_in_one_variable(toml):
    config = load_config(
        toml(""), {"SPOOLAGENT_SERVE_TO": "jsonl:/a, jsonl:/b", "SPOOLAGENT_SPOOL": "/s"}, {}
    )
    assert [r.spec for r in config.serve_settings().receivers] == ["jsonl:/a", "jsonl:/b"]


def test_a_target_that_is_the_spool(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "s")
    config = load_config(None, {}, {"spool": str(tmp_path / "s"), "ship.to": str(tmp_path / "link")})
    with pytest.raises(UsageError, match="is the spool itself"):
        config.ship_settings(once=True)


def test_secrets_are_warned_of_and_not_repeated(toml):
    file = toml(
        '[receivers.m]\nto = "mlflow:http://ann:hunter2@host"\napi_key = "hunter3"\n'
        '[receivers.n]\nto = "mlflow:http://host:5000"\ntoken_file = ""\n'
    )
    os.chmod(file, 0o644)
    warnings = load_config(file, {}, {}).warnings
    assert [w.split(": ")[1].split(" ")[0] for w in warnings[:2]] == ["receivers.m.to", "receivers.m.api_key"]
    assert "chmod 600" in warnings[2]
    assert len(warnings) == 3
    assert "hunter" not in "".join(warnings)
    os.chmod(file, 0o600)
    assert len(load_config(file, {}, {}).warnings) == 2


def test_other_warnings(toml):
    found = load_config(
        toml('spool = "relative"'), {"SPOOLAGENT_SPOL": "x", "SPOOLAGENT_SITE": "s"}, {}
    ).warnings
    assert "spool = 'relative' is relative" in found[0]
    assert found[1] == "SPOOLAGENT_SPOL in the environment means nothing: did you mean 'SPOOLAGENT_SPOOL'?"
    assert len(found) == 2


def test_passwords_in_uris():
    assert has_password("mlflow:https://u:p@h")
    assert has_password("https://:p@h")
    assert not has_password("mlflow:http://host:5000/a@b")
    assert hide_password("x http://u:p@h/") == "x http://***:***@h/"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("30s", 30.0),
        ("10m", 600.0),
        ("12h", 43_200.0),
        ("1d", 86_400.0),
        ("250ms", 0.25),
        ("1.5 m", 90.0),
        ("7", 7.0),
    ],
)
def test_durations(value, seconds):
    assert parse_duration(value, "x") == seconds


@given(
    st.one_of(
        st.text(max_size=12), st.floats(), st.integers(), st.none(), st.booleans(), st.lists(st.integers())
    )
)
def test_a_duration_is_seconds_or_refused(value):
    said = ""
    try:
        seconds = parse_duration(value, "key")
    except UsageError as error:
        said, seconds = str(error), 0.0
    assert said.startswith("key: ") or not said
    assert 0 <= seconds < float("inf")
