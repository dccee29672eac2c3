"""Schedules: cron as KFP's scheduler reads it, and recurring runs made through the real client against a stand-in API."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fake_kfp
import pytest
from fake_kfp import FakeKfp

from pipelines.client.timing import format_interval, next_times, parse_cron, parse_duration, parse_timing
from training.config.errors import UserError

Iddpm = Callable[..., "tuple[int, str, str]"]
A_MONDAY = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
def schedule(iddpm: Iddpm) -> Iddpm:
    """Runs `iddpm schedule` against the server; gives its exit status, standard output and standard error."""
    return lambda *words: iddpm("schedule", *words)


def _next(text: str, count: int = 3, after: datetime = A_MONDAY, zone: str = "UTC") -> list[str]:
    return [f"{time:%a %d.%m. %H:%M:%S}" for time in next_times(parse_cron(text), zone, count, after)]


# -- cron --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("0 0 2 * * *", ["Tue 24.11. 02:00:00", "Wed 25.11. 02:00:00"]),
        ("0 0 2 ? * ?", ["Tue 24.11. 02:00:00", "Wed 25.11. 02:00:00"]),
        ("30 15 14 * * MON-FRI", ["Mon 23.11. 14:15:30", "Tue 24.11. 14:15:30"]),
        ("0 0 0 * * 0", ["Sun 29.11. 00:00:00", "Sun 06.12. 00:00:00"]),
        ("0 */20 12 * * *", ["Mon 23.11. 12:20:00", "Mon 23.11. 12:40:00"]),
        ("0 50/5 12 * * *", ["Mon 23.11. 12:50:00", "Mon 23.11. 12:55:00"]),  # goes on to the end of the hour
        ("0 0 3 1,15 * *", ["Tue 01.12. 03:00:00", "Tue 15.12. 03:00:00"]),
        ("0 0 3 25 * Fri", ["Wed 25.11. 03:00:00", "Fri 27.11. 03:00:00"]),  # either of two restrictions
        ("0 0 3 */2 * Fri", ["Fri 27.11. 03:00:00", "Fri 11.12. 03:00:00"]),  # a star with a step is a star still: both
        ("0 0 0 29 feb *", ["Tue 29.02. 00:00:00"]),
        ("0 0 0 31 2,12 *", ["Thu 31.12. 00:00:00"]),
    ],
)
def test_times_are_those_of_kfps_scheduler(text: str, times: list[str]) -> None:
    assert _next(text, len(times)) == times


def test_times_are_by_the_clock_of_the_zone_over_its_changes() -> None:
    days = _next("0 0 3 * * *", 3, datetime(2027, 3, 26, 12, tzinfo=UTC), "Europe/Berlin")
    assert days == ["Sat 27.03. 03:00:00", "Sun 28.03. 03:00:00", "Mon 29.03. 03:00:00"]


@pytest.mark.parametrize("cron", ["0 0 2 * * *", "0 30 2 * * *"])
def test_a_time_that_the_clocks_leave_out_is_skipped_and_one_that_comes_twice_is_there_twice(cron: str) -> None:
    # What robfig/cron 1.2 itself returned for these, which is KFP's scheduler.
    spring = next_times(cron, "Europe/Berlin", 2, datetime(2027, 3, 26, 12, tzinfo=UTC))
    assert [f"{time:%d.%m. %z}" for time in spring] == ["27.03. +0100", "29.03. +0200"]
    autumn = next_times(cron, "Europe/Berlin", 3, datetime(2027, 10, 30, 12, tzinfo=UTC))
    assert [f"{time:%d.%m. %z}" for time in autumn] == ["31.10. +0200", "31.10. +0100", "01.11. +0100"]
    assert {f"{time:%H:%M}" for time in [*spring, *autumn]} == {f"02:{cron.split()[1]:0>2}"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 2 * * *", "would run it in minute 2 of hour *: write '0 0 2 * * *'"),
        ("30 4 1 * mon", "write '0 30 4 1 * mon'"),
        ("0 2 * *", "has 4 fields; six are needed"),
        ("0 0 0 2 * * *", "has 7 fields"),
        ("", "has 0 fields"),
        ("60 0 2 * * *", "'60' is no second, which is 0 to 59"),
        ("0 60 2 * * *", "no minute, which is 0 to 59"),
        ("0 0 24 * * *", "no hour, which is 0 to 23"),
        ("0 0 2 0 * *", "no day of the month, which is 1 to 31"),
        ("0 0 2 * 13 *", "no month, which is 1 to 12 or jan to dec"),
        ("0 0 2 * * 7", "no day of the week, which is 0 to 6 or sun to sat; Sunday is 0"),
        ("0 0 2 * * MONDAY", "'MONDAY' is no day of the week"),
        ("0 0 2 L * *", "'L' is no day of the month"),
        ("0 0 5-2 * * *", "'5-2' is no hour"),
        ("0 */0 * * * *", "'*/0' is no minute"),
        ("0 1- * * * *", "'1-' is no minute"),
        ("0 1,,2 * * * *", "'' is no minute"),
        ("0 0 2 31 feb,apr *", "never runs: no such day exists"),
        ("@daily", "write '0 0 0 * * *'"),
        ("@every 24h", "give --every 24h instead"),
        ("@noon", "KFP reads six fields"),
        ("TZ=Europe/Berlin 0 0 2 * * *", "give it as --time-zone"),
    ],
)
def test_what_kfp_would_refuse_or_misread_is_refused_with_the_form_it_should_have(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_cron(text)
    assert said in str(error.value)


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "zone", "cluster", "sent"),
    [
        ("0 0 2 * * *", "", "Europe/Berlin", "0 0 2 * * *"),
        ("0 0 2 * * *", "Europe/Berlin", "Europe/Berlin", "0 0 2 * * *"),
        ("0 0 2 * * *", "Asia/Tokyo", "UTC", "0 0 17 * * *"),
        ("0 0 1,12 * * *", "Asia/Tokyo", "UTC", "0 0 3,16 * * *"),
        ("0 0 12 * * MON", "Asia/Tokyo", "UTC", "0 0 3 * * MON"),
        ("0 15 * * * *", "Asia/Tokyo", "UTC", "0 15 * * * *"),
        ("0 0 2 * * *", "Europe/Paris", "Europe/Berlin", "0 0 2 * * *"),
        ("0 0 2 * * *", "UTC", "Asia/Tokyo", "0 0 11 * * *"),
        ("0 */20 2 * * *", "Asia/Tokyo", "UTC", "0 */20 17 * * *"),
        ("0 0 2 * * *", "Asia/Kolkata", "UTC", "0 30 20 * * *"),  # half an hour
        ("0 30 * * * *", "Asia/Kolkata", "UTC", "0 0 * * * *"),
        ("0 0,30 9,10 * * *", "Asia/Kathmandu", "UTC", "0 15,45 3,4 * * *"),  # three quarters
    ],
)
def test_an_expression_is_said_in_the_clusters_zone_where_it_can_be(cron: str, zone: str, cluster: str, sent: str) -> None:
    assert parse_timing(cron, "", time_zone=zone, cluster_zone=cluster).cron == sent


@pytest.mark.parametrize(
    ("cron", "zone", "said"),
    [
        ("0 0 2 * * *", "Europe/Berlin", "Europe/Berlin differs by +1 h or +2 h with the season; write the expression in UTC"),
        ("0 0 2 * * MON", "Asia/Tokyo", "in Asia/Tokyo has no equivalent there"),  # Sunday in UTC
        ("0 0,45 2 * * *", "Asia/Kolkata", "in Asia/Kolkata has no equivalent there"),  # 20:30 and 21:15
        ("0 0 2 * * MON", "Asia/Kolkata", "in Asia/Kolkata has no equivalent there"),  # Sunday in UTC
        ("0 0 * * * MON", "Asia/Tokyo", "in Asia/Tokyo has no equivalent there"),  # from Sunday on in UTC
        ("0 0 2 * * *", "Berlin", "there is no time zone 'Berlin'"),
        ("* 0 2 * * *", "", "would run many times a minute"),
    ],
)
def test_an_expression_that_can_not_be_said_there_is_refused(cron: str, zone: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_timing(cron, "", time_zone=zone)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("cron", "every", "zone", "said"),
    [
        ("", "", "", "give either --cron"),
        ("0 0 2 * * *", "24h", "", "give either --cron"),
        ("", "30s", "", "at least 1m"),
        ("", "1831d", "", "at most 1830d, five years"),
        ("", "daily", "", "is not a duration"),
        ("", "24h", "UTC", "an interval has no zone"),
    ],
)
def test_a_time_that_is_none_is_refused(cron: str, every: str, zone: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_timing(cron, every, time_zone=zone)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86400), ("2d", 172800), ("1h30m", 5400)])
def test_a_length_of_time_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text, "--every") == seconds
    assert parse_duration(format_interval(seconds), "--every") == seconds


# -- recurring runs ----------------------------------------------------------------------------------------------------


def test_create_sends_the_version_the_trigger_and_the_arguments(server: FakeKfp, schedule: Iddpm) -> None:
    status, _, err = schedule("create", "nightly-fid", "--param", "model=models:/mine@champion")
    assert (status, err) == (0, "")
    (request,) = server.asked("POST", "/recurringruns")
    (version,) = server.versions.values()
    description = request.body.pop("description")
    assert description.startswith("iddpm schedule, state ")
    assert request.body == {
        "display_name": "nightly-fid",
        "experiment_id": next(iter(server.experiments)),
        "max_concurrency": 1,
        "mode": "ENABLE",
        "no_catchup": True,
        "pipeline_version_reference": {"pipeline_id": version["pipeline_id"], "pipeline_version_id": version["pipeline_version_id"]},
        "runtime_config": {"parameters": {"model": "models:/mine@champion"}},
        "trigger": {"cron_schedule": {"cron": "0 0 2 * * *"}},
    }


def test_an_interval_the_options_and_a_name(server: FakeKfp, schedule: Iddpm) -> None:
    words = ("--every", "24h", "--name", "daily", "--max-concurrency", "3", "--catch-up", "--preset", "digits-hybrid-cosine")
    status, out, _ = schedule("create", "train", *words)
    assert status == 0
    (request,) = server.asked("POST", "/recurringruns")
    assert request.body["display_name"] == "daily"
    assert request.body["trigger"] == {"periodic_schedule": {"interval_second": 86400}}
    assert (request.body["max_concurrency"], request.body["no_catchup"]) == (3, False)
    assert "when        every 1d" in out


def test_an_experiment_file_or_an_ablation_follows_the_pipeline_as_in_submit(server: FakeKfp, schedule: Iddpm, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('base = "digits-hybrid-cosine"')
    for words in (("train", str(tmp_path / "my.toml")), ("train", "digits-tiny-hybrid-cosine"), ("ablation", "two-stage")):
        assert schedule("create", *words, "--every", "36h", "--name", "mine")[0] == 0
    assert [request.body["runtime_config"]["parameters"] for request in server.asked("POST", "/recurringruns")] == [
        {"experiment_file": 'base = "digits-hybrid-cosine"'},
        {"experiment_preset": "digits-tiny-hybrid-cosine"},
        {"ablation_name": "two-stage"},
    ]


def test_what_is_printed_says_the_zone_and_the_next_times(schedule: Iddpm) -> None:
    out = schedule("create", "nightly-fid", "--cluster-time-zone", "Europe/Berlin")[1]
    assert "when        0 0 2 * * *\n" in out
    assert "zone        Europe/Berlin: KFP reads all cron expressions in the one zone of its cluster" in out
    assert out.rstrip().endswith("(Europe/Berlin)")
    assert (
        "when        0 0 17 * * *  (0 0 2 * * * in Asia/Tokyo)\n"
        in schedule("create", "nightly-fid", "--time-zone", "Asia/Tokyo", "--name", "tokyo")[1]
    )
    told = json.loads(schedule("create", "nightly-fid", "--json")[1])
    assert told["outcome"] == "unchanged"
    assert [time[11:] for time in told["next"]] == ["02:00:00+00:00"] * 3


def test_creating_it_twice_leaves_one(server: FakeKfp, schedule: Iddpm) -> None:
    assert "is created" in schedule("create", "nightly-fid")[1]
    status, out, _ = schedule("create", "nightly-fid")
    assert status == 0
    assert "exists already, unchanged" in out
    assert len(server.asked("POST", "/recurringruns")) == 1
    assert len(server.recurring) == 1


@pytest.mark.parametrize(
    "words", [("--cron", "0 0 3 * * *"), ("--resources", "evaluate.cpu=8"), ("--max-concurrency", "2"), ("--catch-up",), ("--every", "12h")]
)
def test_a_change_replaces_it_and_says_so(server: FakeKfp, schedule: Iddpm, words: tuple[str, ...]) -> None:
    schedule("create", "nightly-fid")
    (old,) = server.recurring
    status, out, _ = schedule("create", "nightly-fid", *words)
    assert status == 0
    assert "has changed and is replaced" in out
    (new,) = server.recurring
    assert new != old
    # The new one is there before the old one goes.
    kinds = [request.method for request in server.requests if "/recurringruns" in request.path and request.method != "GET"]
    assert kinds == ["POST", "POST", "DELETE"]


def test_a_new_version_of_the_pipeline_replaces_it(server: FakeKfp, schedule: Iddpm, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule("create", "nightly-fid")
    monkeypatch.setattr("pipelines.client.arguments.VERSION", "0.2.0")
    assert "has changed and is replaced" in schedule("create", "nightly-fid")[1]
    (kept,) = server.recurring.values()
    assert server.versions[kept["pipeline_version_reference"]["pipeline_version_id"]]["name"].startswith("0.2.0-")


def test_a_replacement_that_is_refused_leaves_the_old_one(server: FakeKfp, schedule: Iddpm) -> None:
    schedule("create", "nightly-fid")
    before = dict(server.recurring)
    server.faults["POST", "/recurringruns"] = [500]
    assert schedule("create", "nightly-fid", "--every", "1h")[0] == 1
    assert server.recurring == before


@pytest.mark.parametrize(("name", "shown"), [("nightly-fid", "nightly-fid"), ("every night", "'every night'")])
def test_a_paused_one_stays_paused_when_it_is_replaced(name: str, shown: str, server: FakeKfp, schedule: Iddpm) -> None:
    schedule("create", "nightly-fid", "--name", name)
    schedule("pause", name)
    _, out, _ = schedule("create", "nightly-fid", "--name", name, "--every", "12h")
    (kept,) = server.recurring.values()
    assert kept["mode"] == "DISABLE"
    assert f"it is paused; `iddpm schedule resume {shown}` resumes it" in out


def test_two_who_create_it_at_once_keep_the_same_one(server: FakeKfp, schedule: Iddpm) -> None:
    """The other one's arrives between this one's look and its own creation."""
    schedule("create", "nightly-fid")
    (others,) = server.recurring.values()
    server.recurring.clear()

    def meanwhile(request: fake_kfp.Request) -> None:
        if (request.method, request.path) == ("POST", "/recurringruns"):
            server.recurring[others["recurring_run_id"]] = others

    server.before = meanwhile
    assert schedule("create", "nightly-fid")[0] == 0
    assert list(server.recurring) == [others["recurring_run_id"]]


def test_a_schedule_that_was_made_elsewhere_is_left_alone(server: FakeKfp, schedule: Iddpm) -> None:
    schedule("create", "nightly-fid")
    (made,) = server.recurring.values()
    made["description"] = "by hand"
    status, _, err = schedule("create", "nightly-fid", "--every", "1h")
    assert status == 1
    assert "was not made by iddpm" in err
    assert list(server.recurring.values()) == [made]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train",), "give either --cron"),
        (("nightly-fid", "--cron", "0 2 * * *"), "write '0 0 2 * * *'"),
        (("nightly-fid", "--max-concurrency", "11"), "must be 1 to 10"),
        (("nightly-fid", "--param", "evaluate_resource=1"), "did you mean 'evaluate_resources'?"),
        (("train", "--every", "1h", "--set", "optim.num_step=1"), "optim.num_step"),
        (("nightly-fid", "--time-zone", "Europe/Berlin"), "with the season"),
        (("nightly-fid", "nightly"), "nightly: pipeline nightly-fid trains no experiment, so it takes no preset and no file"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_sent(server: FakeKfp, schedule: Iddpm, words: tuple[str, ...], said: str) -> None:
    status, out, err = schedule("create", *words)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert said in err
    assert server.requests == []


def test_pause_resume_and_delete(server: FakeKfp, schedule: Iddpm) -> None:
    schedule("create", "nightly-fid")
    (ident,) = server.recurring
    assert schedule("pause", "nightly-fid")[1] == "schedule nightly-fid is paused\n"
    assert schedule("pause", "nightly-fid")[1] == "schedule nightly-fid is already paused\n"
    assert server.recurring[ident]["mode"] == "DISABLE"
    assert schedule("resume", ident)[1] == f"schedule {ident} is active\n"
    assert schedule("resume", "nightly-fid")[1] == "schedule nightly-fid is already active\n"
    assert len(server.asked("POST", f"/recurringruns/{ident}:disable")) == 1
    assert len(server.asked("POST", f"/recurringruns/{ident}:enable")) == 1
    assert schedule("delete", "nightly-fid")[1] == f"schedule nightly-fid is deleted ({ident}); its past runs stay\n"
    assert server.recurring == {}


@pytest.mark.parametrize("words", [("delete", "nightly-fid"), ("create", "nightly-fid", "--every", "12h")])
def test_a_schedule_stays_while_a_run_of_it_goes_on(server: FakeKfp, schedule: Iddpm, words: tuple[str, ...]) -> None:
    schedule("create", "nightly-fid")
    (ident,) = server.recurring
    run_id = server.add_run("RUNNING", recurring_run_id=ident)
    status, _, error = schedule(*words)
    assert (status, list(server.recurring)) == (1, [ident])
    assert f"run {run_id} of the schedule goes on and would vanish with it" in error
    assert schedule("create", "nightly-fid")[0] == 0  # an unchanged one is no matter
    server.runs[run_id]["state"] = "SUCCEEDED"
    assert schedule(*words)[0] == 0
    assert ident not in server.recurring


def test_a_leftover_stays_while_a_run_of_it_goes_on(server: FakeKfp, schedule: Iddpm) -> None:
    """A command leaves this behind if it made the new one, and its request to delete the old one got no answer."""
    schedule("create", "nightly-fid")
    (made,) = server.recurring.values()
    server.recurring["old"] = {**made, "recurring_run_id": "old", "description": f"iddpm schedule, state {'0' * 12}"}
    run_id = server.add_run("RUNNING", recurring_run_id="old")
    status, _, error = schedule("create", "nightly-fid")
    assert (status, "old" in server.recurring) == (1, True)
    assert f"run {run_id} of the schedule goes on and would vanish with it" in error
    server.runs[run_id]["state"] = "SUCCEEDED"
    assert "exists already, unchanged" in schedule("create", "nightly-fid")[1]
    assert list(server.recurring) == [made["recurring_run_id"]]


def test_a_run_that_goes_on_is_found_behind_hundreds_of_younger_ones(server: FakeKfp, schedule: Iddpm) -> None:
    schedule("create", "nightly-fid")
    (ident,) = server.recurring
    run_id = server.add_run("RUNNING", recurring_run_id=ident, created_at="2026-11-25T02:00:00Z")
    for number in range(250):
        server.add_run("SUCCEEDED", created_at=f"2026-11-28T{number // 60:02d}:{number % 60:02d}:00Z")
    status, _, error = schedule("delete", "nightly-fid")
    assert (status, list(server.recurring)) == (1, [ident])
    assert f"run {run_id} of the schedule goes on and would vanish with it" in error


def test_runs_that_are_older_than_the_schedule_are_not_asked_for(server: FakeKfp, schedule: Iddpm) -> None:
    for number in range(250):
        server.add_run("SUCCEEDED", created_at=f"2026-11-20T{number // 60:02d}:{number % 60:02d}:00Z")
    schedule("create", "nightly-fid")
    assert schedule("create", "nightly-fid", "--every", "12h")[0] == 0
    assert len(server.asked("GET", "/runs")) == 1


@pytest.mark.parametrize("verb", ["pause", "resume", "delete"])
def test_a_schedule_that_is_not_there_is_an_error_that_names_what_is_near(schedule: Iddpm, verb: str) -> None:
    assert schedule(verb, "nightly")[2] == "error: there is no schedule 'nightly'; there are none\n"
    schedule("create", "nightly-fid")
    assert schedule(verb, "nightly-fit")[2] == "error: there is no schedule 'nightly-fit'; did you mean 'nightly-fid'?\n"


def test_of_two_of_one_name_one_must_be_named_by_its_id(server: FakeKfp, schedule: Iddpm) -> None:
    schedule("create", "nightly-fid")
    (made,) = server.recurring.values()
    server.recurring["another"] = {**made, "recurring_run_id": "another"}
    assert "there are 2 schedules named 'nightly-fid'; give the id of one" in schedule("delete", "nightly-fid")[2]
    assert schedule("delete", "another")[0] == 0


def test_the_next_times_have_their_years(schedule: Iddpm) -> None:
    _, out, _ = schedule("create", "nightly-fid", "--cron", "0 0 2 1 1 *")
    (line,) = [line for line in out.splitlines() if line.startswith("next ")]
    years = [int(year) for year in re.findall(r"01 Jan (\d{4}) 02:00:00", line)]
    assert years == [years[0], years[0] + 1, years[0] + 2]


def test_list_shows_when_each_runs_next(server: FakeKfp, schedule: Iddpm) -> None:
    assert schedule("list")[1] == "no schedules\n"
    schedule("create", "nightly-fid")
    schedule("create", "train", "--every", "36h", "--name", "again")
    schedule("pause", "again")
    (made,) = [each for each in server.recurring.values() if each["display_name"] == "nightly-fid"]
    server.recurring["by-hand"] = {
        **made,
        "recurring_run_id": "by-hand",
        "display_name": "by hand",
        "trigger": {"cron_schedule": {"cron": "0 2 * * *"}},
    }
    told: list[dict[str, Any]] = json.loads(schedule("list", "--json")[1])
    assert [(each["name"], each["state"], each["when"], bool(each["next"])) for each in told] == [
        ("again", "paused", "every 1d12h", False),
        ("by hand", "active", "0 2 * * * UTC", False),
        ("nightly-fid", "active", "0 0 2 * * * UTC", True),
    ]
    lines = schedule("list")[1].splitlines()
    assert lines[0].split() == ["again", "paused", "every", "1d12h", "iddpm-train"]
    assert "next 20" in lines[2]
