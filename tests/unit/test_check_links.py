"""`make links` tells a page that is gone from a site that can't be reached; the sites are a real server, which is the proxy to them all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import check_links
import pytest


class Sites(BaseHTTPRequestHandler):
    asked: list[tuple[str, str]]
    released: threading.Event

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        page = self.path.rpartition("/")[2]
        self.asked.append((self.command, page))
        if page == "hangs":
            self.released.wait(30)
        if page == "moved":
            self.send_response(301)
            self.send_header("Location", "http://site.dev/404")
        elif page == "get-only":
            self.send_response(404 if self.command == "HEAD" else 200)
        else:
            self.send_response(int(page) if page.isdigit() else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *words: object) -> None:
        pass


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Sites]]:
    class Fresh(Sites):
        asked: list[tuple[str, str]] = []  # noqa: RUF012 - each test's own
        released = threading.Event()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    _reach_sites_by(monkeypatch, server.server_address[1])
    try:
        yield Fresh
    finally:
        Fresh.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _reach_sites_by(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")


def _check(directory: Path, pages: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    file = directory / "page.md"
    file.write_text("".join(f"[page {page}](http://site.dev/{page}).\n" for page in pages))
    lost = check_links.main(str(file))
    return lost, capsys.readouterr().out.replace(f"{file}", "page.md").splitlines()


def test_a_page_that_is_gone_is_named_with_its_file_and_line(
    tmp_path: Path, sites: type[Sites], capsys: pytest.CaptureFixture[str]
) -> None:
    lost, said = _check(tmp_path, ["200", "404", "410", "moved", "404"], capsys)
    assert lost == 4
    assert said == [
        "page.md:2: http://site.dev/404 is gone: its site answers 404",
        "page.md:3: http://site.dev/410 is gone: its site answers 410",
        "page.md:4: http://site.dev/moved is gone: its site answers 404",
        "page.md:5: http://site.dev/404 is gone: its site answers 404",
        "links: 4 of 4 links were asked",
    ]
    assert sites.asked.count(("HEAD", "200")) == 1
    assert ("GET", "200") not in sites.asked


def test_a_site_that_refuses_head_or_robots_or_is_unwell_is_not_gone(
    tmp_path: Path, sites: type[Sites], capsys: pytest.CaptureFixture[str]
) -> None:
    pages = ["get-only", "401", "403", "405", "429", "503"]
    assert _check(tmp_path, pages, capsys) == (0, ["links: 6 of 6 links were asked"])
    assert {page for method, page in sites.asked if method == "GET"} == set(pages)


def test_a_site_that_hangs_could_not_be_asked(
    tmp_path: Path, sites: type[Sites], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_links, "SECONDS", 0.5)
    lost, said = _check(tmp_path, ["hangs", "200"], capsys)
    assert lost == 0
    assert said == ["page.md:1: http://site.dev/hangs could not be asked: no answer in 0.5 seconds", "links: 1 of 2 links were asked"]


def test_without_a_network_nothing_fails_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:  # bound, not listening: nothing else gets the port
        nobody.bind(("127.0.0.1", 0))
        _reach_sites_by(monkeypatch, nobody.getsockname()[1])
        lost, said = _check(tmp_path, ["404", "200"], capsys)
    assert lost == 0
    assert said == [
        "page.md:1: http://site.dev/404 could not be asked: it can't be reached (ProxyError)",
        "page.md:2: http://site.dev/200 could not be asked: it can't be reached (ProxyError)",
        "links: 0 of 2 links were asked",
    ]


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("See [it](https://a.dev/b), or (https://c.dev/d).", ["https://a.dev/b", "https://c.dev/d"]),
        ("<https://a.dev/b> and `https://c.dev/d`!", ["https://a.dev/b", "https://c.dev/d"]),
        ("[set](https://a.dev/Set_(mathematics))", ["https://a.dev/Set_(mathematics)"]),
        ("[![badge](https://a.dev/b.svg)](https://c.dev/d)", ["https://a.dev/b.svg", "https://c.dev/d"]),
        ('   "source": ["[it](https://a.dev/b)\\n", "more"]', ["https://a.dev/b"]),
        ("[1]: https://a.dev/b 'title'", ["https://a.dev/b"]),
    ],
)
def test_a_link_ends_where_the_sentence_or_the_bracket_around_it_ends(text: str, links: list[str]) -> None:
    assert [link for _, link in check_links.find_links(text)] == links


@pytest.mark.parametrize(
    "link",
    [
        "http://localhost:8080",
        "http://127.0.0.1:8000/samples.png?seed=0",
        "http://10.0.0.1/",
        "https://hooks.example.com/...",
        "http://HEAD:8265",
        "http://mlflow.iddpm.svc.cluster.local:5000/#/experiments/1",
        "https://a.dev/{name}",
    ],
)
def test_an_example_or_a_private_address_is_not_asked(link: str) -> None:
    assert check_links.is_placeholder(link)


def test_a_public_address_is_asked() -> None:
    assert not check_links.is_placeholder("https://www.standardwebhooks.com")
