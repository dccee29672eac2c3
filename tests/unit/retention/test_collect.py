"""`iddpm gc` on random histories: whatever is kept finds everything that it names, and nothing in use is touched."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.retention.collect import Collection, collect
from components.retention.survey import Policy, survey
from components.retention.verify import verify
from components.steps.runs import require_not_deleting
from training import storage
from training.config.errors import UserError
from training.config.presets import preset
from training.storage import Stored
from training.tracking.references import RecordedRun, Records

DAY = 86_400.0
START = 2_000_000_000.0
EXPERIMENT = preset("digits-hybrid-cosine").to_json().encode()
STEPS = (10, 20, 30)
Snapshot = dict[str, tuple[bytes, float]]
"""Path below the storage root -> content and time."""


@dataclass
class World:
    """A storage root on disk, and what MLflow says of it; `now` moves by hand."""

    root: Path
    now: float = START
    status: dict[str, str] = field(default_factory=dict)  # directory -> running, finished, deleted
    tags: dict[str, list[str]] = field(default_factory=dict)  # directory -> further addresses in its MLflow run
    registered: list[str] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)  # a training wrote there after the second look, saw the mark and ended
    at_deletion: list[tuple[str, str]] = field(default_factory=list)  # what happens between the first look and a deletion
    at_look: int = 2  # before the second look, or after the first directory is marked

    def write(self, path: str, content: bytes | dict[str, object] = b"x") -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        os.utime(file, (self.now, self.now))

    def add_checkpoint(self, run: str, step: int, *, is_complete: bool = True) -> None:
        uri, weights = f"{run}/checkpoints/step={step:08d}", f"{run} {step}".encode()
        self.write(f"{uri}/model.pt", weights)
        if is_complete:
            digest = {"num_bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
            self.write(f"{uri}/complete.json", {"step": step, "files": {"model.pt": digest}})

    def address(self, path: str) -> str:
        return f"{self.root}/{path}"

    def checkpoint(self, run: str, step: int) -> str:
        return self.address(f"{run}/checkpoints/step={step:08d}")

    def records(self) -> Records:
        runs = [
            RecordedRun(
                run_id=name,
                directory_uri=self.address(name),
                is_running=status == "running",
                is_deleted=status == "deleted",
                texts=(self.address(name), *self.tags.get(name, ())),
            )
            for name, status in self.status.items()
        ]
        return Records(tuple(runs), tuple(self.registered))

    def collect(self, *, delete: bool, policy: Policy = Policy()) -> Collection:  # noqa: B008
        asked = 0

        def records() -> Records:
            nonlocal asked
            asked += 1
            if asked == self.at_look:
                for event, name in self.at_deletion:
                    self.happen(event, name)
            return self.records()

        return collect(str(self.root), policy, delete=delete, records=records, clock=lambda: self.now)

    def happen(self, event: str, name: str) -> None:
        if event == "register" and (self.root / name).is_dir():
            self.registered.append(self.checkpoint(name, STEPS[0]))
        elif event == "restore" and self.status.get(name) == "deleted" and (self.root / name).is_dir():
            self.status[name] = "finished"
        elif event == "write" and (self.root / name).is_dir():
            self.write(f"{name}/evaluations/late.npz")
            self.written.add(name)
        elif event == "train" and (self.root / name).is_dir():
            self.write(f"{name}/experiment.json", EXPERIMENT)
            try:
                require_not_deleting(self.address(name))
            except UserError:
                self.refused.add(name)
                return
            self.status[name] = "running"

    def files(self) -> Snapshot:
        found = (path for path in self.root.rglob("*") if path.is_file() and "gc/" not in str(path.relative_to(self.root)))
        return {str(path.relative_to(self.root)): (path.read_bytes(), path.stat().st_mtime) for path in found}


@st.composite
def worlds(draw: st.DrawFn) -> World:
    root = Path(tempfile.mkdtemp(prefix="iddpm-gc-"))
    try:
        return _drawn(draw, World(root))
    except BaseException:  # Hypothesis gives up a draw in the middle
        shutil.rmtree(root)
        raise


def _drawn(draw: st.DrawFn, world: World) -> World:
    names = [f"runs/run-{number}" for number in range(draw(st.integers(1, 4)))]
    ages = st.sampled_from([0.2, 29.0, 40.0, 40.0, 90.0])
    statuses = st.sampled_from(["running", "finished", "finished", "deleted", "deleted", "unknown"])
    for name in names:
        world.now = START - draw(ages) * DAY
        world.write(f"{name}/experiment.json", EXPERIMENT)
        steps = draw(st.lists(st.sampled_from(STEPS), min_size=1, unique=True))
        for step in steps:
            world.add_checkpoint(name, step, is_complete=draw(st.integers(0, 5)) > 0)
        if draw(st.integers(0, 3)):
            best = draw(st.sampled_from(steps))
            world.write(f"{name}/result.json", {"best_checkpoint_uri": world.checkpoint(name, best)})
            if draw(st.integers(0, 3)):
                chosen = draw(st.sampled_from(steps))
                world.write(f"{name}/evaluations/choice.json", {"checkpoint_uri": world.checkpoint(name, chosen)})
            world.write(f"{name}/evaluations/work-1/part.npz")
            world.write(f"{name}/samples/images-1/plan.json", {})
        if draw(st.booleans()):  # an evaluation of an ensemble names another run
            other = draw(st.sampled_from(names))
            world.write(f"{name}/evaluations/mine.json", {"model": f"{world.checkpoint(other, draw(st.sampled_from(STEPS)))} (model)"})
        world.status[name] = draw(statuses)
        if draw(st.booleans()):
            world.tags[name] = [world.checkpoint(name, draw(st.sampled_from(steps)))]
    if draw(st.booleans()):
        world.now = START - draw(ages) * DAY
        world.write("ablations/sweep/plan.json", {"items": []})
        for name in draw(st.lists(st.sampled_from(names), unique=True)):
            trial = {"run_uri": world.address(name), "checkpoint_uri": world.checkpoint(name, draw(st.sampled_from(STEPS)))}
            world.write(f"ablations/sweep/trials/{name[5:]}.json", trial)
        world.status["ablations/sweep"] = draw(statuses)
    if draw(st.booleans()):
        world.registered.append(world.checkpoint(draw(st.sampled_from(names)), draw(st.sampled_from(STEPS))))
    events = st.tuples(st.sampled_from(["register", "restore", "train", "write"]), st.sampled_from(names))
    world.at_look = draw(st.sampled_from([2, 3]))
    late = st.sampled_from(["register", "restore", "train"])  # a write after the second look saves the directory alone, not what it names
    world.at_deletion = draw(st.lists(events if world.at_look == 2 else st.tuples(late, st.sampled_from(names)), max_size=2))
    world.status = {name: status for name, status in world.status.items() if status != "unknown"}
    world.status.setdefault("runs/long-gone", "deleted")
    world.write("data/digits/train/shard-00000.parquet")
    world.now = START - draw(ages) * DAY
    world.write("pipelines/1234/logs/settings/20261126T190000-step.000.gz")
    world.now = START
    return world


def _references(world: World, files: Snapshot) -> Iterator[str]:
    """Every address, below the root, that something kept names: MLflow's runs, the registry and the files themselves."""
    texts = list(world.registered)
    texts += [
        text for name, status in world.status.items() if status != "deleted" for text in (world.address(name), *world.tags.get(name, ()))
    ]
    for path, (content, _) in files.items():
        if _owner(path) in world.refused:
            continue  # its first write came too late for what it alone names
        if path.endswith(("mine.json", "choice.json", "result.json")) or "/trials/" in path:
            texts += [text.split(" ")[0] for text in json.loads(content).values()]
    return (text.removeprefix(f"{world.root}/") for text in texts)


@pytest.mark.parametrize("times", [{"days": float("nan")}, {"days": float("inf")}, {"days": -1.0}, {"grace_hours": float("nan")}])
def test_a_time_that_is_none_is_refused(times: dict[str, float]) -> None:
    """No age is less than NaN: nothing would be too young to delete."""
    with pytest.raises(UserError, match=f"{next(iter(times))}: .* write a number of 0 or more"):
        Policy(**times)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(  # the world last: Hypothesis may give up a draw, and a world that is drawn has a folder
    hours=st.sampled_from([0.0, 1.0, 25.0, 24.0 * 40]), grace=st.sampled_from([0.0, 24.0]), include_unknown=st.booleans(), world=worlds()
)
def test_no_reference_dangles_nothing_in_use_is_touched_and_garbage_goes(
    world: World, hours: float, grace: float, include_unknown: bool
) -> None:
    policy = Policy(grace_hours=grace, include_unknown=include_unknown)
    try:
        before = world.files()
        assert world.collect(delete=False, policy=policy).deleted == []
        assert world.files() == before
        world.now += hours * 3600
        in_use = {name for name, status in world.status.items() if status == "running"}
        found = world.collect(delete=True, policy=policy)
        in_use |= {name for name, status in world.status.items() if status == "running"} | world.written
        after = world.files()
        _check(world, before, after, in_use, include_unknown)
        assert hours >= grace or found.deleted == []

        known = {_owner(path) for path in after} & world.status.keys()
        world.status = dict.fromkeys(world.status, "deleted")
        world.registered, world.at_deletion = [], []
        world.now += 100 * DAY
        world.write("runs/new/experiment.json", EXPERIMENT)
        world.collect(delete=False, policy=policy)
        world.now += 25 * 3600
        world.collect(delete=True, policy=policy)
        unknown = {_owner(path) for path in after} - world.status.keys() - {"data/digits", "pipelines/1234"}
        left = {_owner(path) for path in world.files()}
        assert "data/digits" in left
        assert "pipelines/1234" not in left
        assert not left & known or (unknown and not include_unknown)  # an unknown directory may name them
        assert unknown <= left or include_unknown
    finally:
        shutil.rmtree(world.root)


def test_a_run_that_is_written_to_again_keeps_the_checkpoint_that_it_alone_names(tmp_path: Path) -> None:
    world = World(tmp_path, now=START - 40 * DAY)
    for run, status in (("runs/run-1", "finished"), ("runs/run-3", "deleted")):
        world.write(f"{run}/experiment.json", EXPERIMENT)
        world.add_checkpoint(run, 10, is_complete=False)
        world.status[run] = status
    world.write("runs/run-3/evaluations/mine.json", {"model": f"{world.checkpoint('runs/run-1', 10)} (model)"})
    world.now, world.at_deletion = START, [("write", "runs/run-3")]
    world.collect(delete=False)
    world.now += 25 * 3600
    before = world.files()
    found = world.collect(delete=True)
    assert {each.name for each in found.spared} == {"runs/run-1/checkpoints/step=00000010", "runs/run-3"}
    assert before.keys() <= world.files().keys()


def _check(world: World, before: Snapshot, after: Snapshot, in_use: set[str], include_unknown: bool) -> None:
    gone = before.keys() - after.keys()
    references = set(_references(world, after))
    for path in gone:
        owner = _owner(path)
        assert owner.startswith(("runs/", "ablations/", "pipelines/"))
        assert owner not in in_use
        assert max(at for each, (_, at) in before.items() if _owner(each) == owner) <= world.now - 30 * DAY
        assert (
            owner.startswith("pipelines/")
            or owner in world.status
            or include_unknown
            or any(_owner(target) == owner for target in references)
        )
    for target in references:
        lost = {path for path in gone if path.startswith(f"{target}/")}
        if "/checkpoints/" in target:
            assert not lost, target
        else:  # a whole run or sweep
            complete = [path for path in before if path.startswith(f"{target}/checkpoints/") and path.endswith("complete.json")]
            assert f"{target}/experiment.json" not in lost
            assert max(complete, default="") not in lost
    assert verify(str(world.root)).damaged == ()
    assert not [path for path in after if path.endswith("deleting.json")]


def _owner(path: str) -> str:
    return "/".join(path.split("/")[:2])


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A storage root with one run; see `_world_of_one_run`."""
    return _world_of_one_run(tmp_path)


def _world_of_one_run(root: Path) -> World:
    """Return a finished run with three checkpoints of which the first was chosen, last written to 40 days ago."""
    world = World(root, now=START - 40 * DAY)
    for step in STEPS:
        world.add_checkpoint("runs/a", step)
    world.write("runs/a/experiment.json", EXPERIMENT)
    world.write("runs/a/result.json", {"best_checkpoint_uri": world.checkpoint("runs/a", 10)})
    world.write("runs/a/evaluations/choice.json", {"checkpoint_uri": world.checkpoint("runs/a", 10)})
    world.status["runs/a"] = "finished"
    world.now = START
    return world


def _look_and_delete(world: World) -> list[str]:
    world.collect(delete=False)
    world.now += 1.01 * DAY
    return [each.name for each in world.collect(delete=True).deleted]


def test_the_best_and_the_last_checkpoint_stay_and_the_others_go(world: World) -> None:
    assert _look_and_delete(world) == ["runs/a/checkpoints/step=00000020"]


def test_a_registered_checkpoint_stays(world: World) -> None:
    world.registered = [world.checkpoint("runs/a", 20)]
    assert _look_and_delete(world) == []


@pytest.mark.parametrize("root", ["ml-pipelines", "training-runs/iddpm", "runs/tunings/ablations"])
def test_a_registered_checkpoint_stays_below_a_root_whose_own_address_looks_like_that_of_a_run(tmp_path: Path, root: str) -> None:
    world = _world_of_one_run(tmp_path / root)
    world.registered = [world.checkpoint("runs/a", 10), world.checkpoint("runs/a", 20)]
    assert _look_and_delete(world) == []
    world.status["runs/a"] = "deleted"
    assert _look_and_delete(world) == []


@pytest.mark.parametrize(
    "file", ["runs/b/nightly/history.json", "runs/b/evaluations/compared.json", "ablations/s/trials/one.json", "ablations/s/plan.json"]
)
def test_a_checkpoint_that_a_nightly_baseline_a_report_or_a_sweep_names_stays(world: World, file: str) -> None:
    world.now -= 40 * DAY
    world.write(file, {"checkpoint_uri": world.checkpoint("runs/a", 20)})
    world.status["/".join(file.split("/")[:2])] = "finished"
    world.now += 40 * DAY
    assert _look_and_delete(world) == []


def test_the_checkpoint_that_guides_the_sampling_stays(world: World) -> None:
    world.now -= 40 * DAY
    world.write("runs/a/evaluations/final.json", {"protocol": {"distance": {"sampling": {"guidance_step": 20}}}})
    world.now += 40 * DAY
    assert _look_and_delete(world) == []


def test_a_copied_run_keeps_what_it_names_by_the_addresses_of_its_first_place(world: World) -> None:
    world.now -= 40 * DAY
    world.write("runs/a/samples/images-1/plan.json", {})
    world.write("runs/a/evaluations/mine.json", {"images_uri": world.address("runs/a/samples/images-1")})
    world.now += 40 * DAY
    shutil.copytree(world.root / "runs/a", world.root / "runs/b")
    shutil.rmtree(world.root / "runs/a")
    world.tags["runs/b"], world.status = ["a model of this run is compared"], {"runs/b": "finished"}
    assert _look_and_delete(world) == ["runs/b/checkpoints/step=00000020"]


def test_a_run_that_was_deleted_in_mlflow_goes_and_leaves_nothing(world: World) -> None:
    world.status["runs/a"] = "deleted"
    world.write("data/digits/train/shard-00000.parquet")
    assert _look_and_delete(world) == ["runs/a"]
    assert list(world.files()) == ["data/digits/train/shard-00000.parquet"]
    assert not (world.root / "runs/a").exists()


def test_the_logs_of_a_pipelines_run_go_once_nothing_was_written_for_the_policys_days(world: World) -> None:
    for run, age in (("old", 31), ("recent", 29)):
        world.now = START - age * DAY
        world.write(f"pipelines/{run}/logs/settings/20261126T190000-step.000.gz")
    world.now = START
    states = {each.name: each.state for each in world.collect(delete=False).directories if each.name.startswith("pipelines/")}
    assert states == {"pipelines/old": "garbage", "pipelines/recent": "garbage"}
    world.now += 0.5 * DAY
    world.write("pipelines/recent/logs/close-run/20261226T190000-step.000.gz")
    world.now += 0.51 * DAY
    deleted = {each.name for each in world.collect(delete=True).deleted}
    assert deleted == {"pipelines/old", "runs/a/checkpoints/step=00000020"}
    world.now += 29 * DAY
    world.collect(delete=False)
    world.now += 1.01 * DAY
    assert [each.name for each in world.collect(delete=True).deleted] == ["pipelines/recent"]


def test_old_messages_and_answers_of_steps_go_and_those_of_a_running_run_stay(world: World) -> None:
    old = ("runs-told/1234.json", "runs-told/5678-hung-a-17.json", "rayjobs/tune-1/rayjob-answer.json", "rayjobs/tune-2/rayjob-call-x.json")
    for path in old:
        world.write(path)
    world.status["runs/a"], world.tags["runs/a"] = "running", ["5678"]
    world.now += 31 * DAY
    fresh = ("runs-told/9.json", "rayjobs/tune-2/rayjob-answer.json")
    for path in fresh:
        world.write(path)
    world.now += 60
    policy = Policy(days=0, grace_hours=0)
    looked = world.collect(delete=False, policy=policy)
    assert {entry.uri.removeprefix(f"{world.root}/") for entry in looked.outdated} == {old[0], old[2]}
    assert set(old) | set(fresh) <= set(world.files())
    world.collect(delete=True, policy=Policy(max_bytes=10**9))
    world.collect(delete=True, policy=Policy(days=40))
    assert set(old) | set(fresh) <= set(world.files())
    world.collect(delete=True)
    assert set(world.files()) & {*old, *fresh} == {old[1], old[3], *fresh}


def test_without_any_wait_the_logs_of_a_pipelines_run_stay_while_its_training_runs(world: World) -> None:
    world.write("pipelines/1234/logs/settings/20261126T190000-step.000.gz")
    world.write("pipelines/5678/logs/settings/20261126T190000-step.000.gz")
    world.status["runs/a"], world.tags["runs/a"] = "running", ["1234"]
    world.now += 60
    policy = Policy(days=0, grace_hours=0)
    world.collect(delete=False, policy=policy)
    assert [each.name for each in world.collect(delete=True, policy=policy).deleted] == ["pipelines/5678"]


def test_a_storage_root_with_logs_of_pipelines_alone_is_said_to_have_no_runs(tmp_path: Path) -> None:
    world = World(tmp_path, now=START)
    world.write("pipelines/1234/logs/settings/20261126T190000-step.000.gz")
    with pytest.raises(UserError, match="there are no runs and no sweeps below it"):
        world.collect(delete=False)


def test_an_interrupted_deletion_leaves_neither_a_result_nor_a_score_without_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on there would stop early by such a score, and its result would name a checkpoint that is gone."""
    deletes = {"delete": storage.delete, "delete_prefix": storage.delete_prefix}
    num_left = -1  # calls until the interruption

    def interrupted(name: str) -> Callable[[str], object]:
        def call(uri: str) -> object:
            nonlocal num_left
            num_left -= 1
            if num_left == 0:
                raise KeyboardInterrupt
            return deletes[name](uri)

        return call

    for name in deletes:
        monkeypatch.setattr(storage, name, interrupted(name))
    for number in itertools.count(1):
        world = _world_of_one_run(tmp_path / str(number))
        world.now -= 40 * DAY
        for step in STEPS:
            world.write(f"runs/a/evaluations/step={step:08d}.json", {"step": step})
        world.now += 40 * DAY
        world.status["runs/a"] = "deleted"
        world.collect(delete=False)
        world.now += 1.01 * DAY
        before = world.files()
        num_left = number
        try:
            world.collect(delete=True)
            break
        except KeyboardInterrupt:
            after = world.files().keys()
        assert "runs/a/result.json" not in after or before.keys() <= after
        scored = {path[-len("00000010.json") : -len(".json")] for path in after if "/evaluations/step=" in path}
        assert all(f"runs/a/checkpoints/step={step}/complete.json" in after for step in scored)
        assert "runs/a/deleting.json" in after
    assert number > 8
    assert world.files() == {}


def test_a_survey_of_twice_as_many_runs_takes_twice_as_many_calls() -> None:
    def count(num_runs: int) -> int:
        stored, runs = [], []
        for uri in (f"s3://iddpm/runs/run-{number}" for number in range(num_runs)):
            paths = (
                "experiment.json",
                "result.json",
                "evaluations/choice.json",
                *(f"checkpoints/step={n:08d}/complete.json" for n in STEPS),
            )
            stored += [Stored(f"{uri}/{path}", 10, "", 1000.0) for path in paths]
            texts = (uri, f"{uri}/checkpoints/step=00000010")
            runs.append(RecordedRun(run_id=uri, directory_uri=uri, is_running=False, is_deleted=uri.endswith("0"), texts=texts))
        calls = 0

        def add(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(add)
        try:
            found = survey("s3://iddpm", stored, Records(tuple(runs), ()), Policy(), now=START, read=lambda uris: ["{}"] * len(uris))
        finally:
            sys.setprofile(None)
        assert len(found) == num_runs
        return calls

    assert count(200) < 2.2 * count(100)


def test_mlflow_is_asked_once_for_many_runs_that_go(tmp_path: Path) -> None:
    world, asked = World(tmp_path, now=START - 40 * DAY), 0
    for number in range(45):
        world.write(f"runs/run-{number}/experiment.json", EXPERIMENT)
        world.status[f"runs/run-{number}"] = "deleted"
    world.now = START
    world.collect(delete=False)
    world.now += 1.01 * DAY

    def records() -> Records:
        nonlocal asked
        asked += 1
        return world.records()

    found = collect(str(world.root), Policy(), delete=True, records=records, clock=lambda: world.now)
    assert len(found.deleted) == 45
    assert asked == 2 + math.ceil(45 / 20), "two looks, and once for each twenty runs"
    assert world.files() == {}


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_root_is_the_same_one_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_deleted: bool) -> None:
    world = World(tmp_path / "store", now=START - 40 * DAY)
    world.write("runs/one/experiment.json", EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    for address in (f"{tmp_path}/store", "store"):  # as MLflow has it
        uri = f"{address}/runs/one"
        run = RecordedRun(run_id="1", directory_uri=uri, is_running=False, is_deleted=is_deleted, texts=(uri,))
        for root in (f"{tmp_path}/store", "store", "./store/"):
            found = collect(root, Policy(), delete=False, records=lambda run=run: Records((run,), ()), clock=lambda: START)
            assert [each.state for each in found.directories if each.name == "runs/one"] == ["garbage" if is_deleted else "referenced"]


@pytest.mark.parametrize("event", ["register", "restore", "train", "write"])
def test_a_run_that_is_needed_again_at_the_last_moment_is_spared_whole(world: World, event: str) -> None:
    world.status["runs/a"] = "deleted"
    world.at_deletion = [(event, "runs/a")]
    before = world.files()
    assert _look_and_delete(world) == []
    assert world.files().keys() >= before.keys()


def test_garbage_that_was_referenced_meanwhile_waits_for_its_grace_time_anew(world: World) -> None:
    world.status["runs/a"] = "deleted"
    world.collect(delete=False)
    world.now += DAY
    world.registered = [world.checkpoint("runs/a", 20)]
    world.collect(delete=False)
    world.registered = []
    assert world.collect(delete=True).deleted == []
    world.now += 1.01 * DAY
    assert len(world.collect(delete=True).deleted) == 1


def test_a_training_refuses_a_directory_that_is_being_deleted_and_takes_one_whose_deletion_was_interrupted(world: World) -> None:
    world.write("runs/a/deleting.json", {"since": time.time()})
    with pytest.raises(UserError, match="is being deleted"):
        require_not_deleting(world.address("runs/a"))
    world.write("runs/a/deleting.json", {"since": time.time() - 2 * 3600})
    require_not_deleting(world.address("runs/a"))
    assert not (world.root / "runs/a/deleting.json").exists()


def test_nothing_goes_while_the_root_is_small_enough(world: World) -> None:
    world.collect(delete=False)
    total = sum(path.stat().st_size for path in world.root.rglob("*") if path.is_file())
    world.now += 2 * DAY
    assert world.collect(delete=True, policy=Policy(max_bytes=total)).deleted == []
    assert len(world.collect(delete=True, policy=Policy(max_bytes=total - 1)).deleted) == 1


def test_an_mlflow_that_knows_none_of_the_runs_is_refused(world: World) -> None:
    world.status = {}
    with pytest.raises(UserError, match="MLflow knows none of the 1 runs"):
        world.collect(delete=True, policy=Policy(include_unknown=True, days=0, grace_hours=0))
    assert (world.root / "runs/a/result.json").exists()
