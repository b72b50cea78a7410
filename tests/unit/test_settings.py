"""Settings: where values come from, what is refused, and that no secret is ever repeated."""

from __future__ import annotations

import pickle
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pgqueue.core.durations import parse_duration
from pgqueue.errors import ConfigurationError, InvalidTime
from pgqueue.settings import (
    RELATIONS,
    Settings,
    describe_settings,
    load_settings,
    redact_dsn,
    render_settings_markdown,
)

CANARY = "hunter2-canary"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration file at or above the working folder but the test's own."""
    monkeypatch.chdir(tmp_path)


def problems(**overrides: object) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**overrides)
    assert caught.value.exit_code == 78
    assert CANARY not in str(caught.value)
    return str(caught.value).splitlines()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


class TestSources:
    def test_without_anything_the_defaults_stand(self) -> None:
        settings = load_settings()
        assert settings == Settings()
        assert (settings.lease_s, settings.heartbeat_s, settings.database_url) == (15.0, 3.0, "")
        assert settings.warnings == ()
        assert settings.source_file is None

    def test_option_over_variable_over_file_over_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "pgqueue.toml", 'lease_s = "20s"\ngrace_s = "21s"\nconcurrency = 22\n')
        monkeypatch.setenv("PGQUEUE_GRACE_S", "31s")
        monkeypatch.setenv("PGQUEUE_CONCURRENCY", "32")
        settings = load_settings(concurrency=42, lease_s=None)
        assert (settings.lease_s, settings.grace_s, settings.concurrency) == (20.0, 31.0, 42)
        assert settings.heartbeat_s == 3.0

    def test_an_empty_variable_counts_as_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGQUEUE_METRICS_PORT", "")
        assert load_settings().metrics_port is None

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("pgqueue.toml", 'lease_s = "20s"'),
            ("pgqueue.yaml", "lease_s: 20s"),
            ("pgqueue.yml", "lease_s: 20s"),
            ("pyproject.toml", '[tool.pgqueue]\nlease_s = "20s"'),
        ],
    )
    def test_each_kind_of_file_is_found_from_a_folder_below(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
    ) -> None:
        path = write(tmp_path / name, text)
        below = tmp_path / "a" / "b"
        below.mkdir(parents=True)
        monkeypatch.chdir(below)
        settings = load_settings()
        assert settings.lease_s == 20.0
        assert settings.source_file == path

    def test_a_pyproject_without_our_table_is_passed_by(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "pgqueue.toml", 'lease_s = "20s"')
        write(tmp_path / "app" / "pyproject.toml", "[project]\nname = 'x'\n")
        monkeypatch.chdir(tmp_path / "app")
        assert load_settings().lease_s == 20.0

    def test_the_nearest_file_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "pgqueue.toml", 'lease_s = "20s"')
        write(tmp_path / "app" / "pyproject.toml", '[tool.pgqueue]\nlease_s = "30s"\n')
        monkeypatch.chdir(tmp_path / "app")
        assert load_settings().lease_s == 30.0

    def test_two_files_in_one_folder_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "pgqueue.toml", 'lease_s = "20s"')
        write(tmp_path / "pgqueue.yaml", "lease_s: 30s")
        (line,) = problems()
        assert "pgqueue.toml" in line
        assert "pgqueue.yaml" in line
        assert "keep one" in line

    def test_a_named_file_is_the_only_one_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "pgqueue.toml", 'lease_s = "20s"')
        named = write(tmp_path / "else" / "production.yaml", "lease_s: 40s")
        monkeypatch.setenv("PGQUEUE_CONFIG", str(named))
        assert load_settings().lease_s == 40.0
        monkeypatch.setenv("PGQUEUE_CONFIG", str(tmp_path / "missing.toml"))
        (line,) = problems()
        assert "missing.toml: cannot be read" in line

    def test_lists_come_as_comma_separated_words_or_as_lists(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGQUEUE_REDACT", "pin, iban,,")
        assert load_settings().redact == ("pin", "iban")
        monkeypatch.delenv("PGQUEUE_REDACT")
        write(tmp_path / "pgqueue.toml", 'redact = ["pin"]')
        assert load_settings().redact == ("pin",)

    def test_made_directly_the_table_takes_only_what_it_is_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "pgqueue.toml", 'lease_s = "20s"')
        monkeypatch.setenv("PGQUEUE_GRACE_S", "31s")
        assert Settings(concurrency=3) == Settings.model_validate({"concurrency": 3})
        assert (Settings().lease_s, Settings().grace_s) == (15.0, 30.0)

    def test_settings_are_frozen_and_survive_the_way_to_another_process(self) -> None:
        settings = load_settings(lease_s="1m")
        with pytest.raises(ValidationError, match="frozen"):
            settings.lease_s = 1.0
        assert pickle.loads(pickle.dumps(settings)) == settings


class TestRetryPolicies:
    def test_tables_for_tasks_queues_and_the_default(self, tmp_path: Path) -> None:
        write(
            tmp_path / "pyproject.toml",
            "[tool.pgqueue.retry.default]\nmax_retries = 5\n"
            "[tool.pgqueue.retry.queues.critical]\nmax_retries = 10\n"
            '[tool.pgqueue.retry.tasks.capture_payment]\nmax_retries = 12\nmax_delay = "1h"\n',
        )
        retry = load_settings().retry
        assert retry.default == {"max_retries": 5}
        assert retry.queues == {"critical": {"max_retries": 10}}
        assert retry.tasks == {"capture_payment": {"max_retries": 12, "max_delay": "1h"}}

    def test_the_domains_own_yaml_is_the_default_policy(self, tmp_path: Path) -> None:
        write(
            tmp_path / "pgqueue.yaml",
            "retry_policy:\n  max_retries: 5\n  backoff_strategy: exponential_jitter\n"
            "  initial_delay: 2s\n  max_delay: 5m\nretry:\n  tasks:\n    email: {max_retries: 1}\n",
        )
        retry = load_settings().retry
        assert retry.default == {
            "max_retries": 5,
            "backoff_strategy": "exponential_jitter",
            "initial_delay": "2s",
            "max_delay": "5m",
        }
        assert retry.tasks == {"email": {"max_retries": 1}}

    def test_two_default_policies_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "pgqueue.yaml", "retry_policy: {max_retries: 5}\nretry: {default: {max_retries: 6}}")
        (line,) = problems()
        assert line.startswith("retry_policy in ")
        assert "keep one" in line

    def test_the_environment_gives_them_as_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGQUEUE_RETRY", '{"tasks": {"email": {"max_retries": 1}}}')
        assert load_settings().retry.tasks == {"email": {"max_retries": 1}}
        monkeypatch.setenv("PGQUEUE_RETRY", f"tasks={CANARY}")
        assert problems() == ["PGQUEUE_RETRY: must be a JSON object when it comes from the environment"]


@pytest.mark.proves("I35")
class TestProblems:
    def test_all_of_them_are_told_at_once_each_with_its_origin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = write(
            tmp_path / "pgqueue.toml",
            'lease_s = 30\nheartbeat = "3s"\npoll_max_s = "40s"\n[retry.tsks.email]\nmax_retries = 1\n',
        )
        monkeypatch.setenv("PGQUEUE_LEAS_S", "3s")
        monkeypatch.setenv("PGQUEUE_CONCURRENCY", CANARY)
        found = problems(poll_min_s=50, log_level="loud")
        assert sorted(found) == sorted(
            [
                "PGQUEUE_LEAS_S: no such setting; did you mean PGQUEUE_LEASE_S?",
                "PGQUEUE_CONCURRENCY: must be a valid integer, unable to parse string as an integer",
                f'lease_s in {file}: has no unit; write "30s" for seconds',
                f"retry.tsks in {file}: no such setting; did you mean tasks?",
                f"heartbeat in {file}: no such setting; did you mean heartbeat_s?",
                "log_level: must be 'debug', 'info', 'warning', 'error' or 'critical'",
                "poll_min_s must be at most poll_max_s: lower it",
            ]
        )

    @pytest.mark.parametrize(
        ("values", "names"),
        [
            ({"heartbeat_s": 8, "lease_s": 15}, {"heartbeat_s", "lease_s"}),
            ({"tcp_user_timeout_s": 15}, {"tcp_user_timeout_s", "lease_s"}),
            ({"poll_max_s": 16}, {"poll_max_s", "lease_s"}),
            ({"poll_min_s": 2}, {"poll_min_s", "poll_max_s"}),
        ],
    )
    def test_each_relation_is_checked(self, values: dict[str, float], names: set[str]) -> None:
        (line,) = problems(**values)
        assert all(name in line for name in names)
        with pytest.raises(ValidationError):
            Settings(**values)

    def test_every_relation_has_its_bound_on_the_right_side(self) -> None:
        load_settings(heartbeat_s=7.5, poll_max_s=15, poll_min_s=15, tcp_user_timeout_s=14.9)

    def test_a_relation_of_a_bad_value_is_not_told_on_top(self) -> None:
        assert problems(lease_s="30", heartbeat_s=20) == ['lease_s: has no unit; write "30s" for seconds']

    def test_the_relations_name_settings_that_exist(self) -> None:
        for names, _, text in RELATIONS:
            assert names <= set(Settings.model_fields)
            assert all(name in text for name in names)

    @pytest.mark.parametrize("text", ["30", "30.5", "-1", "abc", "5 parsecs", "", "s", "1s;", "1" * 70 + "s"])
    def test_a_duration_needs_a_unit(self, text: str) -> None:
        (line,) = problems(grace_s=text)
        assert line.startswith("grace_s: ")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), True, -1, 1e12])
    def test_a_number_of_seconds_must_be_finite_and_in_range(self, value: object) -> None:
        (line,) = problems(grace_s=value)
        assert line.startswith("grace_s: ")

    @pytest.mark.parametrize(
        ("name", "bad", "good"),
        [
            ("concurrency", 0, 1),
            ("claim_batch_max", 10_001, 10_000),
            ("payload_bytes_max", 67_108_865, 67_108_864),
            ("metrics_port", 65_536, 65_535),
            ("suspect_processes_max", 0, 1),
            ("environment", "", "x"),
            ("partitions_ahead_days", 1, 2),
        ],
    )
    def test_limits_hold_at_the_bound_and_not_one_further(self, name: str, bad: object, good: object) -> None:
        assert getattr(load_settings(**{name: good}), name) == good
        (line,) = problems(**{name: bad})
        assert line.startswith(f"{name}: ")

    def test_a_far_variable_is_only_warned_about(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Kubernetes makes these for a service called pgqueue.
        monkeypatch.setenv("PGQUEUE_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv("PGQUEUE_PORT", "tcp://10.0.0.1:80")
        monkeypatch.setenv("PGQUEUE_ACTOR", "ops")
        warnings = load_settings().warnings
        assert [line.split()[0] for line in warnings] == ["PGQUEUE_PORT", "PGQUEUE_SERVICE_HOST"]

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("pgqueue.toml", f'lease_s = "20s\n{CANARY}', "is not TOML"),
            ("pgqueue.yaml", f"a: b: {CANARY}", "is not YAML: look at line 1"),
            ("pgqueue.yaml", f"- {CANARY}", "must hold one table"),
            ("pgqueue.toml", f'_env_file = "{CANARY}"', "no such setting"),
            ("pyproject.toml", "tool = 1", None),
        ],
    )
    def test_a_broken_file_is_one_line_without_its_content(
        self, tmp_path: Path, name: str, text: str, said: str | None
    ) -> None:
        path = write(tmp_path / name, text)
        if said is None:
            assert load_settings().source_file is None
            return
        (line,) = problems()
        assert said in line
        assert str(path) in line

    def test_a_file_that_is_not_text_or_not_small_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "pgqueue.toml").write_bytes(b"\xff\xfe")
        assert "is not UTF-8" in problems()[0]
        (tmp_path / "pgqueue.toml").write_bytes(b"#" * 1_048_577)
        assert "is larger than 1048576 bytes" in problems()[0]


class TestDurations:
    @given(st.integers(0, 400), st.integers(0, 59), st.sampled_from(["", " "]))
    def test_text_means_what_it_means_everywhere_else(self, hours: int, minutes: int, gap: str) -> None:
        text = f"{hours}h{gap}{minutes}m"
        assert Settings(key_ttl_s="1h" if hours + minutes == 0 else text).key_ttl_s == pytest.approx(
            parse_duration("1h" if hours + minutes == 0 else text, field="x")
        )

    @pytest.mark.parametrize("text", ["250ms", "2s", "5m", "1h30m", "2d", "1w", "1.5s", "1d 12h"])
    def test_the_same_spellings_are_accepted_as_for_jobs(self, text: str) -> None:
        assert Settings(handler_transaction_warn_s="1s").handler_transaction_warn_s == 1.0
        seconds = parse_duration(text, field="x")
        if seconds <= 86_400:
            assert Settings(grace_s=text).grace_s == seconds
        assert Settings(key_ttl_s=text if seconds >= 1 else "1s").key_ttl_s == max(seconds, 1)

    @pytest.mark.parametrize("text", ["1m1h", "1s1s", "1h-5m", "1e3s"])
    def test_the_same_spellings_are_refused_as_for_jobs(self, text: str) -> None:
        with pytest.raises(InvalidTime):
            parse_duration(text, field="x")
        assert problems(grace_s=text)[0].startswith("grace_s: ")

    def test_a_timedelta_or_a_number_is_seconds(self) -> None:
        assert Settings(grace_s=timedelta(minutes=1)).grace_s == 60.0
        assert Settings(grace_s=7).grace_s == 7.0


class TestDatabaseAddress:
    @pytest.mark.parametrize(
        "spelling",
        ["postgres://", "postgresql://", "postgresql+psycopg://", "postgresql+asyncpg://", "POSTGRESQL://"],
    )
    def test_every_usual_scheme_becomes_libpqs(self, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGQUEUE_DATABASE_URL", f"{spelling}u:p@h:5433/d?sslmode=require")
        assert load_settings().database_url == "postgresql://u:p@h:5433/d?sslmode=require"

    def test_keywords_pass_as_they_are(self) -> None:
        assert load_settings(database_url="host=/tmp dbname=d").database_url == "host=/tmp dbname=d"

    def test_database_url_is_the_last_resort_before_libpqs_own_variables(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgres://generic/d")
        assert load_settings().database_url == "postgresql://generic/d"
        write(tmp_path / "pgqueue.toml", 'database_url = "postgresql://file/d"')
        assert load_settings().database_url == "postgresql://file/d"
        monkeypatch.setenv("PGQUEUE_DATABASE_URL", "postgresql://own/d")
        assert load_settings().database_url == "postgresql://own/d"
        assert load_settings(database_url="postgresql://option/d").database_url == "postgresql://option/d"

    def test_session_bound_connections_go_past_the_pooler(self) -> None:
        assert load_settings(database_url="host=pooler").direct_dsn == "host=pooler"
        both = load_settings(database_url="host=pooler", direct_database_url="host=direct")
        assert both.direct_dsn == "host=direct"

    @pytest.mark.proves("S7")
    @pytest.mark.parametrize("address", [f"mysql://u:{CANARY}@h/d", f"{CANARY}"])
    def test_another_kind_of_address_is_refused_without_being_repeated(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", address)
        (line,) = problems()
        assert line.startswith("DATABASE_URL: is not a Postgres address")

    @pytest.mark.proves("S7")
    def test_no_password_in_any_representation(self, tmp_path: Path) -> None:
        address = f"postgresql://u:{CANARY}@h/d"
        write(tmp_path / "pgqueue.toml", f'direct_database_url = "{address}"')
        settings = load_settings(database_url=address)
        assert CANARY not in repr(settings) + str(settings) + "".join(settings.warnings)
        assert CANARY not in "\n".join(problems(database_url=address, lease_s="x", concurrency=CANARY))
        with pytest.raises(ValidationError) as caught:
            Settings(database_url=address, lease_s=1, concurrency=CANARY)
        assert CANARY not in str(caught.value)

    @pytest.mark.proves("S7")
    @pytest.mark.parametrize(
        ("dsn", "shown"),
        [
            (f"postgresql://u:{CANARY}@h:5432/d?x=1", "postgresql://u:***@h:5432/d?x=1"),
            (f"postgresql://u:a@b/c?{CANARY}@h/d", "postgresql://u:***@h/d"),
            (f"postgresql://u:{CANARY}@/d?host=/run/pg&port=5", "postgresql://u:***@/d?host=/run/pg&port=5"),
            (f"postgresql://h/d?user=u&password={CANARY}&x=1", "postgresql://h/d?user=u&password=***&x=1"),
            (f"host=h password={CANARY} user=u", "host=h password=*** user=u"),
            (f"host=h password = '{CANARY} \\' more' user=u", "host=h password = *** user=u"),
            ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
            ("postgresql://h:5432/d", "postgresql://h:5432/d"),
            ("", ""),
        ],
    )
    def test_an_address_is_shown_without_its_password(self, dsn: str, shown: str) -> None:
        assert redact_dsn(dsn) == shown

    @given(
        st.text(
            st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="*"),
            min_size=6,
            max_size=20,
        )
    )
    def test_no_password_is_odd_enough_to_slip_through(self, password: str) -> None:
        assert password not in redact_dsn(f"postgresql://user:{password}@host/db")


@pytest.mark.proves("I35")
class TestFileModes:
    @pytest.mark.parametrize(
        ("mode", "text", "warned"),
        [
            (0o644, f'database_url = "postgresql://u:{CANARY}@h/d"', "chmod o-r"),
            (0o640, f'database_url = "postgresql://u:{CANARY}@h/d"', None),
            (0o644, 'database_url = "postgresql://u@h/d"', None),
            (0o644, f'direct_database_url = "host=h password={CANARY}"', "chmod o-r"),
            (0o602, 'lease_s = "20s"', "chmod o-w"),
        ],
    )
    def test_a_secret_for_everyone_to_read_or_a_file_for_everyone_to_change_is_warned_about(
        self, tmp_path: Path, mode: int, text: str, warned: str | None
    ) -> None:
        path = write(tmp_path / "pgqueue.toml", text)
        path.chmod(mode)
        warnings = load_settings().warnings
        if warned is None:
            assert warnings == ()
        else:
            (line,) = warnings
            assert f"{warned} {path}" in line
            assert CANARY not in line


class TestDocs:
    def test_every_setting_says_what_it_is(self) -> None:
        docs = describe_settings()
        assert [doc.name for doc in docs] == list(Settings.model_fields)
        for doc in docs:
            assert doc.description.endswith("."), doc.name
            assert doc.env == f"PGQUEUE_{doc.name.upper()}"
            assert "|" not in doc.description

    def test_a_default_that_is_a_duration_reads_as_one(self) -> None:
        shown = {doc.name: doc.default for doc in describe_settings()}
        assert shown["lease_s"] == "`15s`"
        assert shown["settle_linger_s"] == "`2ms`"
        assert shown["key_ttl_s"] == "`24h`"
        assert shown["wakeups"] == "`true`"
        assert shown["metrics_port"] == "–"

    def test_a_shown_default_can_be_written_back(self) -> None:
        for doc in describe_settings():
            if doc.default != "–":
                written = load_settings(**{doc.name: doc.default.strip("`")})
                assert getattr(written, doc.name) == getattr(Settings(), doc.name), doc.name

    def test_the_reference_page_is_up_to_date(self) -> None:
        page = ROOT / "docs" / "reference" / "settings.md"
        assert page.read_text() == render_settings_markdown(), (
            "write it anew: python -c 'from pgqueue.settings import *; print(render_settings_markdown(), end=\"\")'"
            " > docs/reference/settings.md"
        )
