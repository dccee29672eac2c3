"""Ask every link to another site that the tracked Markdown and notebooks have: `make links`.

A link fails where its site answers that there is no such page. A site that can't be reached, for want of a network or for its own
reasons, fails nothing: it is named. Links within the documentation are mkdocs' business (`make docs`).
"""

from __future__ import annotations

import ipaddress
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import requests

ROOT = Path(__file__).parents[1]
AT_ONCE = 4
SECONDS = 10.0
# These refuse the one who asks, or this moment. Every other 4xx says that the page is not there.
REFUSALS = {401, 403, 405, 406, 407, 408, 425, 429, 451}
# Names that lead nowhere by RFC 2606 and RFC 6762, and a cluster's own.
NOWHERE = ("example.com", "example.org", "example.net", "example", "invalid", "test", "localhost", "local")
_LINK = re.compile(r"https?://[^\s<>\[\]\"'`|\\]+")


def main(*names: str) -> int:
    """Ask the links of these files, or of all tracked ones, and return the number of lines with a link that is gone."""
    tracked = ["git", "ls-files", "*.md", "*.ipynb"]
    files = names or subprocess.run(tracked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    places = [(name, line, link) for name in files for line, link in find_links((ROOT / name).read_text()) if not is_placeholder(link)]
    links = list(dict.fromkeys(link for _, _, link in places))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(zip(links, pool.map(ask, links), strict=True))
    lost = 0
    for name, line, link in places:
        answer = answers[link]
        if is_gone(answer):
            lost += 1
            print(f"{name}:{line}: {link} is gone: its site answers {answer}")
        elif isinstance(answer, str):
            print(f"{name}:{line}: {link} could not be asked: {answer}")
    print(f"links: {sum(isinstance(answer, int) for answer in answers.values())} of {len(links)} links were asked")
    return lost


def find_links(text: str) -> Iterator[tuple[int, str]]:
    """Yield each link of a text with the number of its line, without the marks that end a sentence or a bracket around it."""
    for number, line in enumerate(text.splitlines(), start=1):
        for match in _LINK.finditer(line):
            link = match.group()
            while link[-1] in ".,;:!?*_" or (link[-1] == ")" and link.count(")") > link.count("(")):
                link = link[:-1]
            yield number, link


def is_placeholder(link: str) -> bool:
    """Return whether a link is an example, or an address of this machine, a private network or a cluster."""
    if any(mark in link for mark in ("{", "}", "$")):
        return True
    host = urlsplit(link).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or any(f".{host}".endswith(f".{name}") for name in NOWHERE)


def ask(link: str) -> int | str:
    """Return the status with which a link's site answers, or in words why none came."""
    try:
        status = _status("HEAD", link)
        # Some sites do not know HEAD, and say so by whatever they have at hand.
        return status if status < 400 else _status("GET", link)
    except requests.Timeout:
        return f"no answer in {SECONDS:g} seconds"
    except requests.RequestException as error:
        return f"it can't be reached ({type(error).__name__})"


def is_gone(answer: int | str) -> bool:
    """Return whether an answer says that there is no such page."""
    return isinstance(answer, int) and 400 <= answer < 500 and answer not in REFUSALS


def _status(method: str, link: str) -> int:
    headers = {"User-Agent": "iddpm-check-links"}
    with requests.request(method, link, timeout=SECONDS, allow_redirects=True, stream=True, headers=headers) as response:
        return response.status_code


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
