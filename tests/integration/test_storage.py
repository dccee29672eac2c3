"""S3 and the disk behind one interface, against a real S3 server and a real file system."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest
from botocore.exceptions import ClientError
from counting_proxy import counting

from training import storage
from training.storage import ObjectNotFoundError, StorageError, s3

EVERYWHERE = ["s3", "file", "path"]


@pytest.fixture(params=EVERYWHERE)
def root(request, tmp_path):
    """An empty directory in S3, as file:// and as a plain path."""
    if request.param == "s3":
        return request.getfixturevalue("bucket_uri")
    return (tmp_path / "root").as_uri() if request.param == "file" else str(tmp_path / "root")


@pytest.fixture
def s3_env(services, monkeypatch):
    """Changes the S3 environment for one test."""
    return monkeypatch.setenv


def below(root: str, uris: list[str]) -> list[str]:
    return [uri.removeprefix(root + "/") for uri in uris]


def test_an_object_is_written_read_listed_measured_and_deleted(root):
    uri = storage.join(root, "a", "b", "data.bin")
    assert not storage.exists(uri)
    assert storage.write_bytes(uri, b"one")
    assert storage.write_bytes(uri, b"three")
    assert (storage.read_bytes(uri), storage.size(uri), storage.exists(uri)) == (b"three", 5, True)
    assert storage.list_uris(root) == [uri]
    storage.delete(uri)
    storage.delete(uri)  # nothing there is no error
    assert not storage.exists(uri)
    assert storage.list_uris(root) == []


def test_a_version_tells_an_overwrite_of_the_same_size(root):
    uri = storage.join(root, "archive.tar")
    with pytest.raises(ObjectNotFoundError, match=r"archive\.tar"):
        storage.version(uri)
    versions = []
    for content in (b"one", b"two", b"six"):
        storage.write_bytes(uri, content)
        versions += [storage.version(uri), storage.version(uri)]
    assert versions[::2] == versions[1::2]
    assert len(set(versions)) == 3


def test_json_is_read_as_it_was_written(root):
    value = {"step": 7, "nested": [1.5, None, "ü"]}
    storage.write_json(storage.join(root, "v.json"), value)
    assert storage.read_json(storage.join(root, "v.json")) == value


def test_bytes_that_are_not_json_are_named(root):
    storage.write_bytes(storage.join(root, "v.json"), b'{"half":')
    with pytest.raises(StorageError, match=r"v\.json: is not JSON"):
        storage.read_json(storage.join(root, "v.json"))


@pytest.mark.parametrize("value", [[1], 3, "text", None])
def test_json_that_is_no_object_is_named(root, value):
    storage.write_json(storage.join(root, "v.json"), value)
    with pytest.raises(StorageError, match=r"v\.json: is not a JSON object .* check the address"):
        storage.read_json(storage.join(root, "v.json"))


def test_a_key_that_a_stored_object_has_not_is_named_with_the_file(root):
    storage.write_json(storage.join(root, "v.json"), {"there": 1})
    found = pickle.loads(pickle.dumps(storage.read_json(storage.join(root, "v.json"))))
    assert found["there"] == 1
    assert found.get("absent") is None
    with pytest.raises(StorageError, match=r"v\.json: has no 'absent'; it is damaged"):
        found["absent"]


def test_all_three_places_show_the_same_tree(bucket_uri, tmp_path):
    names = ["top.txt", "a/one", "a/two", "a/deep/er/three", "ab/four", "sp ace/ü %41", "z/.hidden"]
    seen = []
    for root in (bucket_uri, (tmp_path / "f").as_uri(), str(tmp_path / "p")):
        for name in names:
            storage.write_bytes(storage.join(root, name), name.encode())
        uris = storage.list_uris(root)
        assert [storage.read_bytes(uri).decode() for uri in uris] == sorted(names)  # each URI in a listing can be read
        listing = sorted(storage.read_bytes(uri).decode() for uri in storage.list_uris(storage.join(root, "a")))
        folders = [uri.rpartition("/")[2].replace("%20", " ") for uri in storage.list_dirs(root)]
        seen.append((listing, folders, storage.exists(storage.join(root, "a")), storage.list_uris(storage.join(root, "none"))))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0] == (["a/deep/er/three", "a/one", "a/two"], ["a", "ab", "sp ace", "z"], False, [])


@pytest.mark.parametrize("written", ["x", "x/", "./x", "a//x", ".", "./", "..", "{cwd}//x", "file://{cwd}//x"])
def test_a_listing_has_the_addresses_that_join_gives_however_the_directory_is_written(tmp_path, monkeypatch, written):
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    directory = written.format(cwd=cwd)
    uri = storage.join(directory, "inner", "f")
    storage.write_bytes(uri, b"")
    assert storage.list_uris(directory) == [uri]
    assert storage.join(directory, "inner") in storage.list_dirs(directory)


def test_a_directory_without_a_name_is_the_working_one_and_not_the_root_of_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("inner/f", b"")
    assert (storage.list_uris(""), storage.list_dirs("")) == (["inner/f"], ["inner"])


@pytest.mark.parametrize("slashes", ["{bucket}/{key}", "{bucket}//{key}", "{bucket}/{key}//"])
def test_a_listing_in_s3_has_the_addresses_that_join_gives_too(bucket_uri, slashes):
    bucket, _, key = bucket_uri.removeprefix("s3://").partition("/")
    directory = "s3://" + slashes.format(bucket=bucket, key=key)
    uri = storage.join(directory, "inner", "f")
    storage.write_bytes(uri, b"x")
    assert storage.list_uris(directory) == [uri]
    assert storage.list_dirs(directory) == [storage.join(directory, "inner")]
    assert storage.read_bytes(uri) == b"x"


def test_a_file_has_its_name_once_its_content_is_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(b"content")
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").read_bytes(), (tmp_path / "stored").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    for write in (
        lambda: storage.upload(tmp_path / "source", f"{tmp_path}/stored"),
        lambda: storage.write_bytes(f"{tmp_path}/stored", b"more"),
    ):
        synced.clear()
        write()
        content = (tmp_path / "stored").read_bytes()
        (tmp_path / "stored").unlink()
        assert synced == [(content, False)]


@pytest.mark.parametrize("letter", "x画😀")
def test_a_name_may_have_as_many_bytes_as_the_disk_allows(tmp_path, letter):
    uri = f"{tmp_path}/{letter * (255 // len(letter.encode()))}"
    storage.write_bytes(uri, b"x")
    assert storage.list_uris(str(tmp_path)) == [uri]


def test_an_emptied_directory_no_longer_exists(root):
    for name in ("run/checkpoints/step=1/model", "run/checkpoints/step=2/model"):
        storage.write_bytes(storage.join(root, name), b"x")
    assert storage.delete_prefix(storage.join(root, "run/checkpoints/step=1")) == 1
    assert below(root, storage.list_dirs(storage.join(root, "run/checkpoints"))) == ["run/checkpoints/step=2"]
    storage.delete(storage.join(root, "run/checkpoints/step=2/model"))
    assert storage.list_dirs(root) == []


def test_deleting_below_a_name_spares_the_names_that_only_begin_alike(root):
    for name in ("step=1/x", "step=10/x", "step=1.json"):
        storage.write_bytes(storage.join(root, name), b"")
    storage.delete_prefix(storage.join(root, "step=1"))
    assert below(root, storage.list_uris(root)) == ["step=1.json", "step=10/x"]


def test_one_of_many_writers_of_an_absent_name_succeeds(root):
    uri = storage.join(root, "lock")
    start, won = threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        if storage.write_bytes(uri, str(number).encode(), if_absent=True):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in won] == [storage.read_bytes(uri)]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_one_of_many_writers_succeeds_on_a_disk_without_hard_links(number, tmp_path, monkeypatch):
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "link", refuse)
    test_one_of_many_writers_of_an_absent_name_succeeds(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_writers_that_update_at_once_lose_nothing_of_each_other(root):
    uri = storage.join(root, "numbers")
    start = threading.Barrier(8)

    def add(number: int) -> None:
        start.wait()
        storage.update_bytes(uri, lambda stored: (stored or b"") + f"{number} ".encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert sorted(storage.read_bytes(uri).decode().split()) == [str(number) for number in range(8)]


def test_a_reader_sees_the_old_content_or_the_new_but_never_a_part(root):
    uri = storage.join(root, "state")
    contents = [bytes([letter]) * 2_000_000 for letter in b"ab"]
    storage.write_bytes(uri, contents[0])
    done = threading.Event()

    def rewrite() -> None:
        for turn in range(12):
            storage.write_bytes(uri, contents[turn % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    while not done.is_set():
        assert storage.read_bytes(uri) in contents
    writer.join()


def test_a_writer_that_is_killed_leaves_nothing_half_written_to_be_listed(tmp_path):
    code = (
        "import sys; from training import storage\n"
        "while True: storage.write_bytes(sys.argv[1], b'x' * 50_000_000); print('written', flush=True)"
    )
    target = tmp_path / "d" / "big"
    child = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.03)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert storage.list_uris(str(tmp_path)) == [str(target)]
    assert storage.size(str(target)) == 50_000_000


def test_a_listing_goes_on_beyond_a_thousand_names_and_all_can_be_deleted(bucket_uri):
    from concurrent.futures import ThreadPoolExecutor

    names = [f"{bucket_uri}/n/{number:04d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: storage.write_bytes(uri, b""), names))
    assert storage.list_uris(f"{bucket_uri}/n") == names
    assert storage.delete_prefix(f"{bucket_uri}/n") == 1005
    assert storage.list_uris(bucket_uri) == []


def test_files_go_up_and_come_down_whole(root, tmp_path):
    data = os.urandom(20_000_000)  # more than one part of an upload
    source = tmp_path / "source"
    source.write_bytes(data)
    storage.upload(source, storage.join(root, "big"))
    assert storage.read_bytes(storage.join(root, "big")) == data
    assert storage.download(storage.join(root, "big"), tmp_path / "new" / "copy").read_bytes() == data
    with storage.open_local(storage.join(root, "big")) as path:
        assert path.read_bytes() == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]
    assert storage.exists(storage.join(root, "big"))


def test_a_small_object_of_known_size_takes_one_request(services, bucket_uri, tmp_path, s3_env):
    uri = storage.join(bucket_uri, "small")
    storage.write_bytes(uri, b"12345")
    with counting(services.s3_endpoint) as counted:
        s3_env("AWS_ENDPOINT_URL", counted.url)
        assert storage.download(uri, tmp_path / "known", num_bytes=5).read_bytes() == b"12345"
        assert counted.take() == {"GET": 1}
        storage.download(uri, tmp_path / "asked")
        assert counted.take() == {"HEAD": 1, "GET": 1}


@pytest.mark.parametrize("act", [storage.read_bytes, storage.size, lambda uri: storage.download(uri, "unused"), storage.read_json])
def test_a_missing_object_is_its_own_error_and_names_the_uri(root, act):
    uri = storage.join(root, "none/such")
    with pytest.raises(ObjectNotFoundError, match="none/such") as caught:
        act(uri)
    assert caught.value.uri.partition(" to ")[0] == uri
    assert not Path("unused").exists()


@pytest.mark.parametrize("act", [storage.read_bytes, storage.open_seekable, storage.size])
def test_below_a_file_there_is_nothing_to_read(root, act):
    storage.write_bytes(storage.join(root, "file"), b"x")
    assert not storage.exists(storage.join(root, "file", "x"))
    with pytest.raises(ObjectNotFoundError, match="file/x"):
        act(storage.join(root, "file", "x"))


ACTS = {
    "read": storage.read_bytes,
    "exists": storage.exists,
    "version": storage.version,
    "list": storage.list_uris,
    "list_dirs": storage.list_dirs,
    "check_destination": storage.check_destination,
    "write": lambda uri: storage.write_bytes(uri, b"x"),
    "update": lambda uri: storage.update_bytes(uri, lambda stored: b"x"),
    "write if absent": lambda uri: storage.write_bytes(uri, b"x", if_absent=True),
    "upload": lambda uri: storage.upload(__file__, uri),
    "download": lambda uri: storage.download(uri, "unused"),
    "delete_prefix": storage.delete_prefix,
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())
def test_a_missing_bucket_is_named_in_the_error(services, act):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket: there is no such bucket at http://127.*AWS_ENDPOINT_URL") as caught:
        act("s3://no-such-bucket/a/b")
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, ObjectNotFoundError)  # or a lost bucket would look like a fresh start


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())
def test_a_wrong_secret_is_refused_in_words_that_do_not_show_it(bucket_uri, s3_env, act):
    s3_env("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    with pytest.raises(StorageError, match=r"refused the credentials .* check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
        act(f"{bucket_uri}/a")
    assert "wrong-secret-value" not in str(caught.value)
    assert not caught.value.transient


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())
def test_an_endpoint_where_nobody_listens_is_named_with_the_remedy(bucket_uri, s3_env, act):
    s3_env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"no answer from S3 at http://127\.0\.0\.1:9 .*iddpm up") as caught:
        act(f"{bucket_uri}/a")
    assert caught.value.transient


def test_a_local_copy_removes_those_of_killed_processes(bucket_uri, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage.write_bytes(f"{bucket_uri}/lock", b"content")
    killed = tmp_path / "iddpm-copy-killed"
    killed.mkdir()
    (killed / "lock").touch()
    os.utime(killed, (0, 0))
    with storage.open_local(f"{bucket_uri}/lock") as path:
        assert path.read_bytes() == b"content"
        os.utime(path.parents[1], (0, 0))
        with storage.open_local(f"{bucket_uri}/lock") as other:
            assert {path.parents[1], other.parents[1]} == set(tmp_path.glob("iddpm-*"))
    assert list(tmp_path.glob("iddpm-*")) == []


@pytest.mark.parametrize("num_bytes", [1_000, 9 * 2**20], ids=["in one request", "in parts"])
def test_an_object_whose_transfer_breaks_off_each_time_may_be_there_later(monkeypatch, tmp_path, num_bytes):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(num_bytes))
            self.send_header("ETag", '"1"')
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(bytes(100))

        def log_message(self, format, *args):
            pass

    for name, value in {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(StorageError, match=r"s3://bucket/large: no answer from S3 at .* \((Incomplete|Response)\w+\)") as caught:
            storage.download("s3://bucket/large", tmp_path / "copy")
        server.shutdown()
    assert caught.value.transient


@contextlib.contextmanager
def answering(monkeypatch, answer):
    """Serve `answer(handler)` for every request, as S3 at the address of the environment."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer(self)

        do_PUT = do_HEAD = do_DELETE = do_POST = do_GET  # noqa: N815

        def log_message(self, format, *args):
            pass

    asked: list[str] = []
    for name, value in {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield asked
        server.shutdown()


def sending(body, **headers):
    """Return what `answering` takes to send 200 with that body and those headers."""

    def answer(handler):
        handler.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return answer


PAGE = b"<!DOCTYPE html><html><head><meta charset=utf-8></head><body>Sign in<br></body></html>"


@pytest.mark.parametrize("act", [*ACTS.values(), storage.delete], ids=[*ACTS, "delete"])
@pytest.mark.parametrize("page", [PAGE, b"<html><body>Sign in</body></html>"], ids=["HTML", "XHTML"])
@pytest.mark.parametrize("tag", [{}, {"ETag": 'W/"55-abc"'}], ids=["without a tag", "with a weak tag"])
def test_a_page_to_log_in_is_not_taken_for_an_answer_of_s3(monkeypatch, act, page, tag):
    with answering(monkeypatch, sending(page, Content_Type="text/html; charset=utf-8", **tag)) as asked:
        with pytest.raises(
            StorageError, match=r"^s3://b/a: what answers at http://127\S* is not S3, .*text/html.*; check the address"
        ) as caught:
            act("s3://b/a")
        assert len(asked) == 1, "it is not asked again"
    assert not caught.value.transient


@pytest.mark.parametrize("act", [storage.list_uris, storage.list_dirs, storage.delete_prefix])
def test_a_listing_that_is_none_is_not_taken_for_an_empty_directory(monkeypatch, act):
    with answering(monkeypatch, sending(b"<status>fine</status>")), pytest.raises(StorageError, match=r"is not S3, .*no Content-Type"):
        act("s3://b/a")


@pytest.mark.parametrize("mark", [{"x-amz-request-id": "1"}, {"X-GUploader-UploadID": "1"}, {"ETag": '"1"'}], ids=["AWS", "GCS", "another"])
def test_a_page_that_s3_stores_is_read(monkeypatch, mark):
    with answering(monkeypatch, sending(PAGE, Content_Type="text/html", **mark)):
        assert storage.read_bytes("s3://b/report.html") == PAGE
    with answering(monkeypatch, sending(b"", Content_Type="text/html")):  # as Google answers a write
        assert storage.write_bytes("s3://b/report.html", PAGE)


def test_a_page_is_read_from_a_server_that_tells_a_page_by_its_content(bucket_uri):
    storage.write_bytes(f"{bucket_uri}/report", PAGE)
    assert storage.read_bytes(f"{bucket_uri}/report") == PAGE
    assert storage.list_uris(bucket_uri) == [f"{bucket_uri}/report"]


def test_a_request_without_an_answer_is_repeated_by_boto3_alone(monkeypatch):
    """Retries inside retries would take longer than the other ranks of a training wait."""
    with answering(monkeypatch, lambda handler: handler.connection.close()) as asked:
        with pytest.raises(StorageError, match=r"no answer from S3 .* \(ConnectionClosedError\)") as caught:
            storage.read_bytes("s3://bucket/object")
        assert len(asked) == 4
    assert caught.value.transient


def test_what_a_server_does_not_implement_is_not_asked_for_again(monkeypatch):
    def answer(handler):
        body = b"<Error><Code>NotImplemented</Code><Message>If-None-Match</Message></Error>"
        handler.send_response(501)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    said = r"does not implement what was asked \(NotImplemented\); update the server"
    with answering(monkeypatch, answer), pytest.raises(StorageError, match=said) as caught:
        storage.write_bytes("s3://bucket/object", b"content", if_absent=True)
    assert not caught.value.transient


def refusing(status, code):
    """Return what `answering` takes to refuse a request."""
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()

    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    "act", [lambda uri: storage.write_bytes(uri, b"x", if_absent=True), lambda uri: storage.update_bytes(uri, lambda stored: b"x")]
)
@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
def test_a_writer_that_loses_every_race_may_try_again(monkeypatch, act, code):
    monkeypatch.setattr(s3, "_head", Mock(side_effect=ObjectNotFoundError("none")))
    monkeypatch.setattr(s3, "_WRITERS", 2)
    said = rf"^s3://bucket/object: other programs write it at the same moment \(S3 answered 409 {code} no\); try again$"
    with answering(monkeypatch, refusing(409, code)), pytest.raises(StorageError, match=said) as caught:
        act("s3://bucket/object")
    assert caught.value.transient


def test_an_update_that_loses_every_race_may_try_again_and_a_write_of_an_absent_name_says_that_it_is_there(monkeypatch):
    monkeypatch.setattr(s3, "_head", Mock(side_effect=ObjectNotFoundError("none")))
    monkeypatch.setattr(s3, "_WRITERS", 2)
    with answering(monkeypatch, refusing(412, "PreconditionFailed")):
        assert not storage.write_bytes("s3://bucket/object", b"x", if_absent=True)
        with pytest.raises(StorageError, match=r"at the same moment \(S3 answered 412 PreconditionFailed no\); try again$") as caught:
            storage.update_bytes("s3://bucket/object", lambda stored: b"x")
    assert caught.value.transient


def test_a_directory_of_the_objects_name_does_not_pass(monkeypatch):
    answer = refusing(409, "ExistingObjectIsDirectory")
    with answering(monkeypatch, answer), pytest.raises(StorageError, match="check the address") as caught:
        storage.write_bytes("s3://bucket/object", b"x")
    assert not caught.value.transient


def test_a_server_of_credentials_that_is_away_may_come_back(monkeypatch):
    def answer(handler):
        handler.send_response(503)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with answering(monkeypatch, answer):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", os.environ["AWS_ENDPOINT_URL"])
        with pytest.raises(StorageError, match=r"s3://bucket/object: .* check the role of this pod or machine") as caught:
            storage.read_bytes("s3://bucket/object")
    assert caught.value.transient


def test_an_environment_without_credentials_is_named(s3_env, services, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StorageError, match="there are no S3 credentials; set AWS_ACCESS_KEY_ID"):
        storage.read_bytes("s3://iddpm/a")


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_ENDPOINT_URL", "http://my_minio:9000", "^AWS_ENDPOINT_URL: Invalid endpoint: http://my_minio:9000; write it like http://"),
        ("AWS_ENDPOINT_URL", "http://", "^AWS_ENDPOINT_URL: Invalid endpoint: http://; write it like http://"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:8333\n", "^AWS_ENDPOINT_URL: there is white space around the value"),
        ("AWS_ACCESS_KEY_ID", "id\n", "^AWS_ACCESS_KEY_ID: there is white space around the value, such as the line break"),
        ("AWS_SECRET_ACCESS_KEY", " key", "^AWS_SECRET_ACCESS_KEY: there is white space around the value"),
        ("AWS_PROFILE", "nosuch", r"^s3://bucket/a: The config profile \(nosuch\) could not be found; check .* the AWS_"),
        ("AWS_REGION", "us east 1", "^s3://bucket/a: .*region_name 'us east 1' .*; check .* the AWS_"),
    ],
)
def test_a_setting_that_is_none_is_named(s3_env, act, name, value, message):
    s3_env(name, value)
    with pytest.raises(StorageError, match=message) as caught:
        act("s3://bucket/a")
    assert not caught.value.transient


def test_an_empty_endpoint_is_that_of_aws(s3_env):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        s3_env(name, "")
    assert s3.client().meta.endpoint_url == "https://s3.amazonaws.com"


def test_credentials_of_the_default_chain_are_used_where_the_environment_has_none(bucket_uri, tmp_path, monkeypatch):
    """A profile with a credential process stands for every source that boto3 knows: IRSA, Pod Identity, an instance's role."""
    keys = {"Version": 1, "AccessKeyId": os.environ["AWS_ACCESS_KEY_ID"], "SecretAccessKey": os.environ["AWS_SECRET_ACCESS_KEY"]}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    (tmp_path / "config").write_text(f"[profile platform]\ncredential_process = cat {tmp_path}/keys.json\n")
    storage.write_bytes(f"{bucket_uri}/a", b"content")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "platform")
    assert storage.read_bytes(f"{bucket_uri}/a") == b"content"
    with storage.open_seekable(f"{bucket_uri}/a") as file:
        assert file.read(3) == b"con"


def test_a_session_token_is_sent(s3_env):
    s3_env("AWS_SESSION_TOKEN", "token-of-the-session")
    signed = s3.client().generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    assert "token-of-the-session" in signed


def test_a_file_is_read_in_parts_from_any_position(root):
    uri = storage.join(root, "parts")
    storage.write_bytes(uri, b"0123456789")
    with storage.open_seekable(uri) as file:
        assert (file.read(3), file.tell(), file.seek(-2, os.SEEK_END)) == (b"012", 3, 8)
        assert (file.read(100), file.read(1)) == (b"89", b"")
        assert (file.seek(1), file.seek(1, os.SEEK_CUR), file.read()) == (1, 2, b"23456789")
    with pytest.raises(ObjectNotFoundError, match="none"):
        storage.open_seekable(storage.join(root, "none"))


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x"])
def test_another_scheme_is_refused_and_the_error_names_those_that_work(uri):
    with pytest.raises(StorageError, match="not supported; use s3://, file:// or a path"):
        storage.read_bytes(uri)


def test_an_address_of_s3_without_its_scheme_is_named_with_the_variable(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
    with pytest.raises(StorageError, match=r"AWS_ENDPOINT_URL is 'localhost:8333'; write it with its scheme, like http://"):
        storage.read_bytes("s3://iddpm/x")


@pytest.mark.parametrize("uri", ["s3://iddpm", "s3://iddpm/", "/", "file:///"])
def test_a_whole_bucket_or_disk_is_never_deleted(services, uri):
    with pytest.raises(StorageError, match=r"names a whole bucket|root of the disk"):
        storage.delete_prefix(uri)


@pytest.mark.parametrize("uri", ["/tmp/..", "file:///usr/..", "link"])
def test_the_root_of_the_disk_is_known_by_its_other_names(tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/")
    monkeypatch.setattr(shutil, "rmtree", Mock(side_effect=AssertionError))
    monkeypatch.setattr(os, "walk", Mock(side_effect=AssertionError))
    with pytest.raises(StorageError, match="is the root of the disk; name a directory below it"):
        storage.delete_prefix(uri)


@pytest.mark.parametrize("uri", ["", "file://", "file://localhost"])
def test_an_empty_address_does_not_delete_the_working_directory(tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("kept", b"x")
    with pytest.raises(StorageError, match=rf"^'{uri}': names no directory; name the one to delete"):
        storage.delete_prefix(uri)
    assert storage.read_bytes("kept") == b"x"


def test_a_temporary_disk_that_is_full_or_can_not_be_written_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    said = rf"^{tmp_path}/nowhere/iddpm-copy-\w+: No such file .*, or point TMPDIR elsewhere$"
    with pytest.raises(StorageError, match=said) as caught, storage.scratch_directory("copy"):
        pass
    assert not caught.value.transient
    full = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    monkeypatch.setattr(tempfile, "mkdtemp", Mock(side_effect=full))
    said = r"^/tmp/x: the disk is full; free some space there, or point TMPDIR elsewhere$"
    with pytest.raises(StorageError, match=said), storage.scratch_directory("copy"):
        pass


def test_an_error_in_the_use_of_a_temporary_directory_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError), storage.scratch_directory("copy") as directory:
        (directory / "nothing").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_a_download_without_room_names_the_bytes_that_it_needs_and_leaves_nothing(bucket_uri, small_disk):
    storage.write_bytes(f"{bucket_uri}/big", bytes(3 * 2**20))
    with pytest.raises(StorageError, match=r"disk is full \(needs 3.00 MiB, .* free\); free some space"):
        storage.download(f"{bucket_uri}/big", small_disk / "big")
    with pytest.raises(StorageError, match="disk is full"):
        storage.write_bytes(str(small_disk / "other"), bytes(3 * 2**20))
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_during_the_download_is_an_error_and_leaves_nothing(bucket_uri, small_disk, monkeypatch):
    storage.write_bytes(f"{bucket_uri}/big", bytes(3 * 2**20))
    elsewhere = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: elsewhere)  # as if there had been room at the beginning
    with pytest.raises(StorageError, match="the disk is full; free some space") as caught:
        storage.download(f"{bucket_uri}/big", small_disk / "big")
    assert "\n" not in str(caught.value)
    assert list(small_disk.iterdir()) == []


def test_a_checked_destination_leaves_no_directory_behind(tmp_path):
    (tmp_path / "here").mkdir()
    for name in ("here/new/x.pt", "new/deep/x.pt"):
        storage.check_destination(str(tmp_path / name))
    (tmp_path / "here" / "file").write_text("")
    with pytest.raises(StorageError, match="a file and a directory can't have one name"):
        storage.check_destination(str(tmp_path / "here" / "file" / "new" / "x.pt"))
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["here", "here/file"]


def test_a_directory_that_takes_no_file_is_not_called_a_full_disk():
    with pytest.raises(StorageError, match=r"^/proc/x: no file can be made in this directory; name another directory$"):
        storage.write_bytes("/proc/x", b"x")
    with pytest.raises(StorageError, match=r"^/proc: no file can be made in this directory; name another directory$"):
        storage.check_destination("/proc/new/x.png")


class Outage:
    """An action that fails `count` times before it succeeds."""

    def __init__(self, count: float, *, transient: bool = True) -> None:
        self.left, self.calls, self.transient = count, 0, transient

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.left:
            raise StorageError("s3://b/k: no answer", transient=self.transient)
        return "done"


def test_an_outage_is_waited_out_and_reported_once(capsys):
    assert storage.retry(Outage(3), seconds=10, pause_seconds=0.01) == "done"
    assert capsys.readouterr().out == "iddpm| s3://b/k: no answer; trying again for 10 s\n"


def test_waits_that_grow_end_too():
    assert storage.retry(Outage(3), seconds=10, pause_seconds=0.01, max_pause_seconds=0.02) == "done"


def test_a_failure_that_cannot_pass_is_not_tried_again():
    action = Outage(1, transient=False)
    with pytest.raises(StorageError, match="no answer"):
        storage.retry(action, seconds=10)
    assert action.calls == 1


@pytest.mark.parametrize(("seconds", "fewest", "most"), [(0, 1, 1), (0.2, 2, 5)])
def test_the_last_failure_is_raised_when_the_budget_is_spent(seconds, fewest, most):
    action = Outage(float("inf"))
    with pytest.raises(StorageError, match="no answer"):
        storage.retry(action, seconds=seconds, pause_seconds=0.05)
    assert fewest <= action.calls <= most


def test_local_paths_need_no_boto3():
    code = (
        "import sys; from training import storage; storage.exists('/x'); assert not {'boto3', 'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("code", "status", "remedy"),
    [
        ("RequestTimeTooSkewed", 403, "set the clock of this machine"),
        ("AccountProblem", 403, "check AWS_ACCESS_KEY_ID"),
        ("403", 403, "check AWS_ACCESS_KEY_ID"),
        ("Unauthorized", 401, "check AWS_ACCESS_KEY_ID"),
        ("ExpiredToken", 400, "check AWS_ACCESS_KEY_ID"),
        ("InvalidArgument", 400, "answered 400 InvalidArgument no; check the address"),
        ("QuotaExceeded", 403, "raise the quota of the bucket"),
        ("InvalidObjectState", 403, "restore the object from the archive first"),
        ("PermanentRedirect", 301, "set AWS_REGION to the bucket's region, and"),
        ("301", 301, "answered 301 no; set AWS_REGION to the bucket's region, and"),
        ("AuthorizationHeaderMalformed", 400, "set AWS_REGION to the bucket's region, and"),
        ("400", 400, "answered 400 no; check the address, AWS_REGION, and that the credentials have not expired"),
    ],
)
def test_a_refusal_names_what_is_refused(monkeypatch, code, status, remedy):
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    fake = Mock(**{"get_object.side_effect": ClientError(answer, "GetObject"), "meta.endpoint_url": "http://s3"})
    monkeypatch.setattr(s3, "client", lambda: fake)
    with pytest.raises(StorageError, match=remedy) as caught:
        storage.read_bytes("s3://bucket/key")
    assert not caught.value.transient


@pytest.mark.parametrize("place", ["header", "body"])
def test_the_region_of_a_bucket_that_is_elsewhere_is_named(monkeypatch, place):
    answer = {"Error": {"Code": "PermanentRedirect", "Message": "elsewhere"}, "ResponseMetadata": {"HTTPStatusCode": 301}}
    if place == "header":
        answer["ResponseMetadata"]["HTTPHeaders"] = {"x-amz-bucket-region": "eu-west-1"}
    else:
        answer["Error"]["Region"] = "eu-west-1"
    fake = Mock(**{"get_object.side_effect": ClientError(answer, "GetObject"), "meta.endpoint_url": "http://s3"})
    monkeypatch.setattr(s3, "client", lambda: fake)
    with pytest.raises(StorageError, match=r"set AWS_REGION to the bucket's region \(eu-west-1\)"):
        storage.read_bytes("s3://bucket/key")


def test_the_marks_by_which_consoles_show_folders_are_deleted_and_no_objects(monkeypatch):
    keys = ["run/", "run/a/", "run/a/1.pt", "run/b/"]
    entries = [{"Key": key, "Size": 0, "ETag": '"1"', "LastModified": datetime.now(UTC)} for key in keys]
    fake = MagicMock()
    fake.delete_objects.return_value = {}
    monkeypatch.setattr(s3, "client", lambda: fake)
    fake.get_paginator.return_value.paginate.return_value = [{"Contents": entries}]
    assert storage.list_uris("s3://bucket/run") == ["s3://bucket/run/a/1.pt"]
    assert storage.delete_prefix("s3://bucket/run") == 4
    assert [entry["Key"] for entry in fake.delete_objects.call_args.kwargs["Delete"]["Objects"]] == keys
    fake.get_paginator.return_value.paginate.return_value = [{"CommonPrefixes": [{"Prefix": "run/a/"}, {"Prefix": "run/b/"}]}]
    fake.list_objects_v2.side_effect = (
        lambda Prefix, MaxKeys, **rest: {  # noqa: N803
            "Contents": [entry for entry in entries if entry["Key"].startswith(Prefix)][:MaxKeys]
        }
    )
    assert storage.list_dirs("s3://bucket/run") == ["s3://bucket/run/a"]


def test_a_directory_that_another_process_deletes_does_not_end_a_listing(tmp_path, monkeypatch):
    for number in range(4):
        storage.write_bytes(str(tmp_path / "root" / f"{number}" / "below" / "file"), b"x")
    scandir = os.scandir

    def scan_after_the_other(path):
        if str(path).endswith("root/1"):
            Path(path).rename(tmp_path / "removed")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan_after_the_other)
    assert len(storage.list_uris(str(tmp_path / "root"))) == 3
    assert (tmp_path / "removed").exists()


def test_a_deletion_goes_on_where_another_process_has_deleted_a_file(tmp_path, monkeypatch):
    for number in range(4):
        storage.write_bytes(str(tmp_path / "root" / f"{number}"), b"x")
    unlink = os.unlink

    def unlink_after_the_other(path, **options):
        unlink(path, **options)
        if str(path).endswith("1"):
            raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(os, "unlink", unlink_after_the_other)
    storage.delete_prefix(str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_a_directory_that_can_not_be_listed_is_an_error_and_not_empty(tmp_path, monkeypatch):
    storage.write_bytes(str(tmp_path / "file"), b"x")
    assert storage.list_uris(str(tmp_path / "nowhere")) == storage.list_uris(str(tmp_path / "file")) == []

    def refuse(path, *rest):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="Permission denied; give this user the right"):
        storage.list_uris(str(tmp_path))
