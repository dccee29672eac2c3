"""The commands of ablations as a person meets them: what is offered, what is refused, and nothing started for either."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.ablations.definitions.reproductions import REPRODUCTIONS
from pipelines.cli.paper.ablations import _check_sources, _requests
from training.config.errors import UserError

Command = Callable[..., tuple[int, str, str]]
"""Runs a command in this process: exit status, standard output and standard error."""


def test_the_ablations_are_listed_with_their_place_in_the_paper(run_iddpm: Command) -> None:
    _, printed, _ = run_iddpm("ablations")
    for words in ("hybrid-weight", "table 1", "sampling-steps", "figures 1 and 8-19", "two-stage", "evaluates 2 runs"):
        assert words in printed


def test_a_plan_shows_every_trial_and_what_it_costs(tmp_path: Path, run_iddpm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, printed, _ = run_iddpm("ablate", "hybrid-weight", "--plan", "--scale", "paper")
    assert printed.count("diffusion.stop_gradient=") == 4
    assert "h of training" in printed.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_plan_with_seeds_shows_each_setting_once_and_the_cost_of_all_seeds(run_iddpm: Command) -> None:
    _, once, _ = run_iddpm("ablate", "hybrid-weight", "--plan", "--scale", "paper")
    _, printed, _ = run_iddpm("ablate", "hybrid-weight", "--plan", "--scale", "paper", "--seeds", "5")
    assert printed.splitlines()[:-1] == once.splitlines()[:-1]
    total = once.splitlines()[-1].removeprefix("in all ")
    hours = [int(word) for word in total.replace(",", "").split() if word.isdigit()][:2]
    found = printed.splitlines()[-1].removeprefix("in all, every trial with 5 seeds, ").replace(",", "").split()
    # Hours are rounded: 5 x 0.5 + 0.5.
    assert [int(word) for word in found if word.isdigit()][:2] == pytest.approx([5 * each for each in hours], abs=3)


def test_a_plan_shows_what_the_user_changes_in_place_of_what_it_replaces(run_iddpm: Command) -> None:
    command = ["ablate", "cond64-overfitting", "--plan", "--scale", "small", "--set", "optim.num_steps=9000", "--objective", "vlb"]
    _, printed, _ = run_iddpm(*command)
    assert printed.count("optim.num_steps=") == 4
    assert printed.count("optim.num_steps=9000") == 4
    assert printed.count("objective vlb") == 4
    assert "The plan was registered without these changes: objective vlb, optim.num_steps=9000." in printed
    assert "seen 85 times" not in printed, "it is true of the registered length alone"


def test_the_plan_of_the_small_scale_shows_what_was_registered_and_fits_into_five_hours(run_iddpm: Command) -> None:
    _, printed, left_out = run_iddpm("ablate", "all", "--plan", "--scale", "small", "--seeds", "5")
    assert "L_vlb has a better likelihood than L_hybrid. Decided by: bits/dim of test images of L_vlb, less that of L_hybrid" in printed
    assert printed.count("Decided by") == 39
    assert left_out.startswith("left out: the ablation 'two-stage' has no scale small")
    assert printed.splitlines()[-1].endswith("of measuring on one core"), "a scale for two cores costs no H100"
    hours = [int(word) for word in printed.splitlines()[-1].split() if word.isdigit()]
    assert len(hours) == 2
    assert sum(hours) <= 5 * 2  # two cores


def test_a_reproduction_says_what_it_costs_and_starts_nothing_without_consent(run_iddpm: Command) -> None:
    status, printed, error = run_iddpm("reproduce", "cifar10-table2", "--card", "A100", "--price-per-hour", "2")
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [row.role for row in REPRODUCTIONS["cifar10-table2"].paper]
    assert "FID 2.9, 3.37 bits/dim in the paper; 500,000 updates of 128, 50,000 samples of all 4,000 steps" in lines[2]
    assert "on one A100" in lines[7]
    assert lines[7].endswith("at 2 an hour")
    assert (status, error) == (1, "error: nothing was started; give --yes to start it\n")


def test_a_named_checkpoint_costs_no_training(run_iddpm: Command) -> None:
    def hours(*arguments: str) -> list[int]:
        _, printed, _ = run_iddpm("reproduce", "imagenet64-table1-1500k", *arguments)
        return [int(word) for word in printed.splitlines()[3].replace(",", "").split() if word.isdigit()][:2]

    trained, measured = hours()
    half, same = hours("--run", "vlb-cosine-1500k=s3://bucket/runs/released")
    assert (2 * half, same) == (pytest.approx(trained, abs=1.5), measured)  # hours are rounded: 2 x 0.5 + 0.5
    table, imported = "imagenet64-table1-1500k", ("--run", "hybrid-cosine-1500k=s3://x/a", "--run", "vlb-cosine-1500k=s3://x/b")
    _, printed, _ = run_iddpm("ablate", table, "--scale", "paper", "--plan", *imported[2:])
    assert [f"{half} h of training" in printed.splitlines()[-1], printed.count(" of training")] == [True, 2], "of one row, and in all"
    assert " of training" not in run_iddpm("ablate", table, "--scale", "paper", "--plan", *imported)[1]


_GRID = """preset: digits-tiny-hybrid-cosine
grid:
  diffusion.vlb_weight: [0.1, 0.2]
  optim.ema_decays: [[0.9], [0.9, 0.99]]
set: [seed=3]
"""


def test_a_grid_in_a_file_is_every_combination_of_its_lists(tmp_path: Path, run_iddpm: Command) -> None:
    (tmp_path / "weights.yaml").write_text(_GRID)
    _, printed, _ = run_iddpm("ablate", str(tmp_path / "weights.yaml"), "--plan")
    assert printed.startswith("weights at the scale tiny")
    assert printed.count("digits-tiny-hybrid-cosine diffusion.vlb_weight=") == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ablate", "hybrid-wait"), "did you mean 'hybrid-weight'"),
        (("ablate", "width", "--scale", "smal"), "there is no scale 'smal'; it is paper, small or tiny"),
        (("ablate", "two-stage", "--scale", "small"), "has no scale small: images that two cores can learn are too small"),
        (("ablate", "width", "--set", "optim.learning_rate=1"), "varies optim.learning_rate itself"),
        (("ablate", "mine", "--grid", "seed=1,2"), "needs an experiment to vary"),
        (("ablate", "mine", "--grid", "seed", "--preset", "digits-tiny-hybrid-cosine"), "section.field=a,b,c"),
        (("ablate", "vlb-ratio", "--run", "vlb"), "--run vlb: write NAME=ADDRESS"),
        (("ablate", "vlb-ratio", "--run", "vlb=s3://a", "--run", "vlb=s3://b"), "--run vlb is given twice; give one address"),
        (("report", "hybrid-wait"), "did you mean 'hybrid-weight'"),
        (("report", "mine", "--grid", "seed=1,2"), "needs an experiment to vary"),
        (("reproduce", "cifar-table2"), "did you mean 'cifar10-table2'"),
        (("reproduce", "figure7"), "the tables are cifar10-table2, imagenet64-table1, "),
        (("reproduce", "cifar10-table2", "--run", "vlb=s3://x"), "takes no run 'vlb'; its runs are simple-linear-t1000, simple-linear"),
        (("reproduce", "cifar10-table2", "--card", "H1000"), "error: there is no card 'H1000'; the cards are "),
        (("ablate", "cifar10-table2"), "take --scale paper, or `iddpm reproduce cifar10-table2`"),
        (("ablate", "nothing.yaml"), "nothing.yaml: there is no such file"),
        (("ablate", "wrong.yaml"), "there is no 'axes'"),
        (("ablate", "all", "--preset", "digits-tiny-hybrid-cosine"), "name one ablation"),
        (("run", "ablation", "--param", "ablation_name=hybrid-wait"), "did you mean 'hybrid-weight'"),
        (("run", "ablation", "--set", "diffusion.vlb_weight=1"), "varies diffusion.vlb_weight itself"),
        (("run", "ablation", "--param", 'ablation_runs={"vlb": "s3://x"}'), 'ablation_options={"runs": {"vlb": "s3://x"}}'),
        (("run", "ablation", "--param", 'ablation_options={"sed": 5}'), "ablation_options.sed: there is no 'sed'; did you mean 'seeds'"),
        (
            ("ablate", "width", "--num-workers", "2", "--parallel-trials", "2"),
            "2 trials at once have one process each, not 2; give --parallel-trials",
        ),
        (("ablate", "width", "--resources", "evaluate.num_workers=3", "--parallel-trials", "2"), "have one process each, not 3"),
        (("ablate", "width", "--seeds", "334"), "has 1,002 trials; it may have 1,000: take fewer seeds"),
    ],
)
def test_an_ablation_that_can_not_work_is_refused_in_one_line_before_anything_starts(
    tmp_path: Path, run_iddpm: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(_GRID + "axes: 3\n")
    status, printed, error = run_iddpm(*arguments)
    assert status == 1
    assert not printed
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "write 'preset: NAME'"),
        (b"- a\n- b\n", "write 'preset: NAME'"),
        (b"grid: {}\n", "write 'preset: NAME'"),
        (b"grid: [1\n", "is not YAML"),
        (b"title: caf\xe9\n", "cannot be read as YAML"),
        ("grid: {}".encode("utf-16"), "save it as UTF-8"),
        (b"grid:\n  seed: [1]\n  seed: [2]\n", "has seed twice"),
        (b"grid:\n  data.name: [2026-01-01, digits]\n", "put such a value in quotes"),
        (b"grid:\n  seed: [1, 2]\nset: optim.num_steps=4\n", "set: Input should be a valid tuple"),
        (b"grid:\n  seed: [1, 2]\nset: 5\n", "set: Input should be a valid tuple"),
        (b"grid:\n  seed: [1, 2]\n1: 5\n", "there is no '1'"),
    ],
)
def test_a_file_that_is_no_grid_is_refused_by_its_name(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=rf"mine\.yaml: .*{said}"):
        _requests(str(path), "tiny", "", "", [], [], [])


def test_a_file_without_a_name_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name:\npreset: digits-tiny-hybrid-cosine\ngrid:\n  seed: [1, 2]\n")
    (request,) = _requests(str(path), "tiny", "", "", [], [], [])
    assert (request.name, len(request.trials())) == ("mine", 2)


@pytest.mark.parametrize(("option", "found"), [("", "last"), ("best", "best")])
def test_a_file_names_the_checkpoint_and_the_option_comes_first(tmp_path: Path, option: str, found: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: digits-tiny-hybrid-cosine\ngrid:\n  seed: [1, 2]\ncheckpoint: last\n")
    (request,) = _requests(str(path), "tiny", "", "", [], [], [], checkpoint=option)
    assert request.ablation().checkpoint == found


def test_of_all_ablations_each_takes_the_check_sources_its_own_data_sets() -> None:
    requests = _requests("all", "paper", "", "", [], [], [])
    sources = ["cifar10=cifar10:/data/c", "imagenet64-official=imagenet:/data/i"]
    found = dict(zip((request.name for request in requests), _check_sources(requests, sources, ""), strict=True))
    assert found["cifar10-dropout"] == {"cifar10": "cifar10:/data/c"}
    assert found["hybrid-weight"] == {"imagenet64-official": "imagenet:/data/i"}
    assert found["lsun-batch-size"] == {}


@pytest.mark.parametrize("plan", [[], ["--plan"]])
@pytest.mark.parametrize("name", ["all", "cifar10-dropout"])
def test_a_source_of_no_ablations_data_set_is_refused_before_anything_starts(run_iddpm: Command, name: str, plan: list[str]) -> None:
    status, _, error = run_iddpm("ablate", name, "--scale", "paper", "--source", "cifar01=cifar10:/data/c", *plan)
    assert status == 1
    assert error.startswith("error: --source: no trial has a data set 'cifar01'; they have cifar10")


def test_a_plan_refuses_data_options_that_a_run_would_refuse(run_iddpm: Command) -> None:
    status, _, error = run_iddpm("ablate", "hybrid-weight", "--plan", "--data-options", '{"label": "folders"}')
    assert status == 1
    assert error.startswith("error: data_options.label: ")
