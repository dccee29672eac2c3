"""A webhook that is away at first is told once of a failed run with its error, and of a cancelled nightly check, which has no exit task."""

import json

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_KEY = "key-of-the-conformance-receiver"
_RECEIVER = f"""
import base64, collections, hmac, http.server
refused = collections.Counter()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        ident = self.headers["webhook-id"]
        signed = f"{{ident}}.{{self.headers['webhook-timestamp']}}.".encode() + body
        signature = "v1," + base64.b64encode(hmac.new(b"{_KEY}", signed, "sha256").digest()).decode()
        refused[ident] += 1
        verdict = "refused" if refused[ident] <= 3 else "signed" if signature == self.headers["webhook-signature"] else "forged"
        print(verdict, body.decode(), flush=True)
        self.send_response(503 if verdict == "refused" else 200)
        self.end_headers()
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
"""Refuses each message three times, which is as often as a step sends it, so the reaper has to deliver it."""
_NAME = "iddpm-conformance-webhook"


def drive(cluster: Cluster) -> None:
    """Let a training fail, cancel a nightly check at its first step, and wait for the reaper."""
    receiver = cluster.start_pod(_NAME, _RECEIVER)
    address = f"http://{receiver['status']['podIP']}:8000/hook"
    cluster.set_secret("iddpm-webhook", {"url": address, "key": _KEY, "events": "failed cancelled"})
    failed = cluster.submit("--param", f"data_source={cluster.settings.storage_root_uri}/nowhere.zip")
    root = ["--param", f"storage_root_uri={cluster.settings.storage_root_uri}"]
    started = cluster.iddpm("submit", "nightly-fid", "--no-wait", "--json", *root)
    nightly = json.loads(started)["run_id"]
    cluster.follow(nightly)
    cluster.wait("the check has begun", lambda: cluster.workflow(nightly), 300)
    cluster.iddpm("cancel", nightly)
    cluster.end_of(nightly, 900)
    cluster.finish(failed)

    def told() -> bool:
        log = cluster.log(_NAME)
        return all(_told(log, run_id) for run_id in (failed.run_id, nightly))

    cluster.wait("the reaper has told of both", told, 900)
    cluster.last(250, "two more reapers look")
    cluster.record.texts["webhook"] = cluster.log(_NAME)


def _told(log: str, run_id: str) -> list[str]:
    return [line for line in log.splitlines() if " signed {" in line and run_id in line]


def judge(record: Record) -> list[Claim]:
    """Judge what the receiver got."""
    log = record.texts.get("webhook")
    claims = [record.says("no message is forged", "webhook", r"\A(?!(.|\n)* forged )")]
    for number, (event, words) in enumerate((("failed", "failed at preprocess"), ("cancelled", "was cancelled"))):
        run_id = record.workflows[number]["states"][-1]["labels"]["pipeline/runid"] if number < len(record.workflows) else "no run"
        found = None if log is None else _told(log, run_id)
        ok = found is not None and len(found) == 1 and f'"event": "{event}"' in found[0] and words in found[0]
        claims.append(Claim(f"it is told once that a run {words}", None if found is None else ok, str(found)[:400]))
    return claims
