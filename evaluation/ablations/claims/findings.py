"""The paper's claims, by ablation. Each claim has its text, its source and the two numbers that it compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evaluation.ablations.claims.claim import Deciding, Finding, claim, combine_seeds, judge
from evaluation.ablations.claims.estimates import (
    bits,
    bound_ratio,
    change,
    curve,
    distance,
    distance_name,
    distances_by_weights,
    find,
    full_likelihood_steps,
    mean,
    missing_steps,
    score_curve,
)
from evaluation.ablations.trials.joint import ENDS_SHARE
from evaluation.ablations.trials.measures import paired_correlation, read_images
from evaluation.ablations.trials.record import AblationTrial, split_by_seed
from training import storage

Records = Sequence[AblationTrial]
Claims = Iterator[Finding | None]

_BITS = "bits/dim"
_TABLES = "main paper, tables 1 and 2"
_SCALING = "main paper, scaling"
_SAMPLING = "main paper, FID by sampling steps"
_FIGURE_1 = "supplement section 2, figure 1"
_SECTION_4 = "supplement section 4"
_FIGURE_6 = "supplement section 6, figure 6"
_FIGURE_7 = "supplement section 7, figure 7"
_RISE_OF_SCORES = 1.05
"""A score that ends above this multiple of its minimum has become worse. Noise moves neighbouring scores by less."""
_RISE_OF_BITS = 1.002
"""The same for bits/dim, which are taken on the same images and noise at every step."""


def findings(name: str, records: Iterable[AblationTrial]) -> list[Finding]:
    """Test the claims of an ablation; a claim is left out if a trial that it needs is missing or failed. A user's grid has none.

    Repeated seeds are tested one by one and then combined. A failed trial takes its seed out of the claims that need it.
    """
    if name not in _CLAIMS:
        return []
    by_claim: dict[str, list[Finding]] = {}
    seeds = split_by_seed(record for record in records if record.values or not record.error)
    for of_seed in seeds.values():
        if not all(record.error for record in of_seed):
            for finding in _CLAIMS[name](of_seed):
                if finding is not None:
                    by_claim.setdefault(finding.claim, []).append(finding)
    return [found[0] if None in seeds else combine_seeds(found) for found in by_claim.values()]


def _hybrid_weight(records: Records) -> Claims:
    source = "supplement section 1, table 1"
    stop, free = ([distance(find(records, stop_gradient=stop, vlb_weight=weight)) for weight in (0.001, 0.01)] for stop in (True, False))
    unit, with_it = distance_name(records), "change from lambda 0.001 to 0.01 with it"
    yield claim("The stop-gradient improves sample quality.", source, ("mean with it", mean(stop)), ("without", mean(free)), unit)
    yield claim("The stop-gradient reduces the sensitivity to lambda.", source, (with_it, change(*stop)), ("without", change(*free)), unit)


def _objective_schedule(records: Records) -> Claims:
    data_sets = list(dict.fromkeys(str(record.values["data"]) for record in records))
    for data in data_sets:
        rows = [record for record in records if record.values["data"] == data]
        yield from _objectives_and_schedules(rows, f" ({data})" if len(data_sets) > 1 else "")


def _objectives_and_schedules(rows: Records, on: str) -> Claims:
    full = max(record.values["num_timesteps"] for record in rows)

    def trial(schedule: str, objective: str) -> AblationTrial | None:
        return find(rows, num_timesteps=full, schedule=schedule, objective=objective)

    simple, hybrid, vlb = (trial("cosine", objective) for objective in ("simple", "hybrid", "vlb"))
    linear, more = trial("linear", "hybrid"), trial("linear", "simple")
    less = next((record for record in rows if record.values["num_timesteps"] < full), None)
    less_name = f"T = {less.values['num_timesteps']:,}" if less else "fewer"
    for text, unit, estimate, smaller, larger in (
        ("L_hybrid has a better likelihood than L_simple", _BITS, bits, ("L_hybrid", hybrid), ("L_simple", simple)),
        ("L_vlb has a better likelihood than L_hybrid", _BITS, bits, ("L_vlb", vlb), ("L_hybrid", hybrid)),
        ("L_vlb has worse samples than L_hybrid", distance_name(rows), distance, ("L_hybrid", hybrid), ("L_vlb", vlb)),
        ("The cosine schedule improves the likelihood of L_hybrid", _BITS, bits, ("cosine", hybrid), ("linear", linear)),
        ("More timesteps improve the likelihood of L_simple, linear", _BITS, bits, (f"T = {full:,}", more), (less_name, less)),
    ):
        yield claim(f"{text}{on}.", _TABLES, (smaller[0], estimate(smaller[1])), (larger[0], estimate(larger[1])), unit)


def _sampling_steps(records: Records) -> Claims:
    data_sets = [record.values["data"] for record in records]
    rows = [record for record in records if record.values["data"] == ("cifar10" if "cifar10" in data_sets else data_sets[0])]
    hybrid = find(rows, schedule="cosine", objective="hybrid")
    learned, ddim = (curve(hybrid, "sampling-steps", method) for method in ("ancestral", "ddim"))
    if len(learned) < 3 or hybrid is None:
        return
    linear = curve(find(rows, schedule="linear", objective="hybrid"), "sampling-steps", "ancestral")
    fixed = curve(find(rows, schedule="cosine", objective="simple"), "sampling-steps", "ancestral")
    full, least = max(learned), min(learned)
    few = min(learned, key=lambda count: abs(count - full // 40))
    most = max(ddim, default=least)
    for text, source, count, smaller, larger in (
        ("With the fewest steps ({}) DDIM is better than the ancestral sampler.", _FIGURE_1, least, ("DDIM", ddim), ("ancestral", learned)),
        (
            "With many steps ({}) the ancestral sampler with a learned variance is better than DDIM.",
            _FIGURE_1,
            most,
            ("ancestral", learned),
            ("DDIM", ddim),
        ),
        ("With few steps ({}) the cosine schedule is better than the linear one.", _SAMPLING, few, ("cosine", learned), ("linear", linear)),
        (
            "With few steps ({}) a learned variance is better than the fixed one of L_simple.",
            _SAMPLING,
            few,
            ("L_hybrid", learned),
            ("L_simple", fixed),
        ),
    ):
        sides = (smaller[0], smaller[1].get(count)), (larger[0], larger[1].get(count))
        yield claim(text.format(f"{count} of {full:,}"), source, *sides, distance_name([hybrid], "sampling-steps"))


def _batch_size(records: Records) -> Claims:
    sizes = sorted({record.values["global_batch_size"] for record in records})
    curves = {
        (objective, size): curve(find(records, objective=objective, global_batch_size=size), "figure-1")
        for objective in ("hybrid", "simple")
        for size in sizes
    }
    counts = set.intersection(*(set(points) for points in curves.values()))
    if len(counts) < 2 or len(sizes) < 2:
        return
    few, many, small, large = min(counts), max(counts), sizes[0], sizes[-1]
    best = {(name, count): min(curves[name, size][count] for size in sizes) for name in ("hybrid", "simple") for count in (few, many)}
    ddim, hybrid, small_batch, large_batch = "DDIM, better batch", "L_hybrid, better batch", f"batch {small}", f"batch {large}"
    for text, smaller, larger in (
        (f"With few steps ({few}) DDIM outperforms L_hybrid.", (ddim, best["simple", few]), (hybrid, best["hybrid", few])),
        (f"With many steps ({many}) L_hybrid outperforms DDIM.", (hybrid, best["hybrid", many]), (ddim, best["simple", many])),
        (
            f"DDIM benefits from the smaller batch and learning rate ({few} steps).",
            (small_batch, curves["simple", small][few]),
            (large_batch, curves["simple", large][few]),
        ),
        (
            f"L_hybrid takes advantage of the larger batch and learning rate ({many} steps).",
            (large_batch, curves["hybrid", large][many]),
            (small_batch, curves["hybrid", small][many]),
        ),
    ):
        yield claim(text, _FIGURE_1, smaller, larger, distance_name(records))


def _likelihood_steps(records: Records) -> Claims:
    for record in records:
        strided, repaired = (curve(record, "likelihood-steps", spacing) for spacing in ("strided", "with-small-t"))
        if not repaired or min(repaired) not in strided:  # it may not be finite
            continue
        few, most = min(repaired), max(strided)
        most_name = f"all {most:,} steps" if most == full_likelihood_steps(record) else f"{most:,} strided steps"
        # Both curves are on the same images and noise: the spread over images is no error of their difference.
        yield claim(
            f"Adding every t from 1 to T/K repairs the likelihood of {few} strided steps ({record.role}).",
            "supplement section 5, figure 5",
            ("with them", (repaired[few][0], 0.0)),
            ("strided alone", (strided[few][0], 0.0)),
            _BITS,
            beside=((most_name, strided[most][0]),),
        )


def _vlb_ratio(records: Records) -> Claims:
    hybrid, vlb = find(records, role="hybrid"), find(records, role="vlb")
    if hybrid is None or vlb is None or hybrid.error or vlb.error:
        return
    ratio = bound_ratio(hybrid, vlb)
    if ratio is None:
        return
    width = max(1, len(ratio) // ENDS_SHARE)
    for text, part_name, part, vlb_is_better in (
        ("theta_vlb is better at the start of the diffusion process.", f"the first {width} timesteps", ratio[:width], True),
        ("theta_hybrid is better throughout the middle.", "the timesteps between", ratio[width:-width], False),
        ("theta_vlb is better at the end of the diffusion process.", f"the last {width} timesteps", ratio[-width:], True),
    ):
        log_mean = sum(math.log(value) for value in part) / len(part)
        share = sum(value < 1 for value in part) / len(part)
        evidence = (
            f"Over {part_name} the ratio of theta_hybrid's terms to theta_vlb's is {math.exp(log_mean):.3g} "
            f"(geometric mean); theta_hybrid is the better one at {share:.0%} of them."
        )
        number = Deciding(
            name=f"Logarithm of the ratio of theta_hybrid's terms to theta_vlb's over {part_name}", value=log_mean, above=vlb_is_better
        )
        yield Finding(text, f"{_SECTION_4}, figure 3", judge(number.difference), evidence, number)


def _ensemble(records: Records) -> Claims:
    joint, hybrid, vlb = (find(records, role=name) for name in ("ensemble", "hybrid", "vlb"))
    better_part = min((estimate for estimate in (bits(hybrid), bits(vlb)) if estimate is not None), default=None)
    ours, unit = ("ensemble", distance(joint)), distance_name(records)
    text = "The ensemble has a better likelihood than both of its parts."
    yield claim(text, _SECTION_4, ("ensemble", bits(joint)), ("the better part", better_part), _BITS)
    text = "The ensemble's samples are slightly worse than theta_hybrid's."
    yield claim(text, _SECTION_4, ("theta_hybrid", distance(hybrid)), ours, unit)
    yield claim("The ensemble's samples are better than theta_vlb's.", _SECTION_4, ours, ("theta_vlb", distance(vlb)), unit)


def _same_noise(records: Records) -> Claims:
    for data in dict.fromkeys(str(record.values["data"]) for record in records):
        rows = [record for record in records if record.values["data"] == data and record.measures.get("samples")]
        uris = [record.measures["samples"]["images_uri"] for record in rows[:2]]
        if len(uris) < 2 or not all(map(storage.exists, uris)):
            continue
        first, second = map(read_images, uris)
        if first.shape != second.shape:  # of runs that the user named
            continue
        paired, unpaired = paired_correlation(first, second)
        differences = paired - unpaired
        number = Deciding(
            name="Correlation of images from the same noise, less that of images from different noise",
            value=float(differences.mean()),
            error=float(differences.std()) / math.sqrt(len(differences)),
            above=True,
        )
        yield Finding(
            f"From the same noise L_hybrid and L_vlb draw related images ({data}).",
            "supplement section 8, figures 20 and 21: shown there, not said",
            judge(number.difference, number.error),
            f"Pixels of {len(first)} pairs of images from the same noise correlate by {float(paired.mean()):.2f}, "
            f"of pairs from different noise by {float(unpaired.mean()):.2f}.",
            number,
        )


def _two_stage(records: Records) -> Claims:
    two, one = (distance(find(records, role=role)) for role in ("two-stage", "single-stage"))
    source, unit = "supplement section 3, table 2", distance_name(records)
    yield claim("Two stages are better than a single one.", source, ("two stages", two), ("a single stage", one), unit)


def _width(records: Records) -> Claims:
    ordered = sorted(records, key=lambda record: int(record.values["width"]))
    if len(ordered) < 2:
        return
    narrow, wide = ordered[0], ordered[-1]
    wide_name, narrow_name = (f"C = {record.values['width']}" for record in (wide, narrow))
    for quality, unit, estimate in (("distance", distance_name(records), distance), ("likelihood", _BITS, bits)):
        text = f"A wider model has the better {quality}."
        yield claim(text, _SCALING, (wide_name, estimate(wide)), (narrow_name, estimate(narrow)), unit)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Course:
    """The minimum of a curve over training, and its end."""

    best_step: int
    minimum: float
    last_step: int
    end: float

    @classmethod
    def of(cls, points: Mapping[int, float]) -> _Course:
        best, last = min(points, key=lambda step: points[step]), max(points)
        return cls(best_step=best, minimum=points[best], last_step=last, end=points[last])

    def describe(self, name: str) -> str:
        if self.best_step == self.last_step:
            return f"{name} is least, {self.minimum:.4g}, at the last step, {self.last_step:,}: it was still becoming better."
        return f"{name} is least, {self.minimum:.4g}, at step {self.best_step:,}, and {self.end:.4g} at the last, step {self.last_step:,}."

    def rises(self, factor: float) -> bool:
        """Return True if the curve has become worse. A curve that ends near its minimum may still become worse later."""
        return self.end > factor * self.minimum

    def test_rise(self, text: str, source: str, factor: float, name: str) -> Finding:
        """Test whether the curve of that name has become worse."""
        number = Deciding(name=f"{name}, the last over the least", value=self.end / self.minimum, level=factor, above=True, one_sided=True)
        return Finding(text, source, "as the paper says" if self.rises(factor) else "not decided here", self.describe(name), number)

    def test_sooner(self, other: _Course, names: tuple[str, str], text: str, source: str, factor: float, evidence: str) -> Finding:
        """Test whether this one reached its best before the other; undecided until the earlier one has become worse again."""
        earlier = min(self, other, key=lambda course: course.best_step)
        if not earlier.rises(factor):
            return Finding(text, source, "not decided here", f"{evidence} The earlier one has not risen again, so a better one may follow.")
        steps = float(self.best_step), float(other.best_step)
        number = Deciding(value=steps[0] - steps[1], sides=tuple(zip(names, steps, strict=True)), unit="steps to the best")
        return Finding(text, source, judge(number.difference), evidence, number)


def _dropout(records: Records) -> Claims:
    courses: dict[str, _Course] = {}
    for schedule in ("linear", "cosine"):
        record = find(records, schedule=schedule, dropout=0.1)
        points = {step: value for step, (value, _) in curve(record, "history-likelihood").items()}
        text = f"The {schedule} model with dropout 0.1 overfits."
        if missing := [step for step in missing_steps(record, "history-likelihood") if step > min(points, default=0)]:
            evidence = f"Its bits/dim are missing at some steps, the first of them {missing[0]:,}: no average could be rebuilt there."
            yield Finding(text, _FIGURE_6, "not decided here", evidence)
        elif len(points) > 1:
            course = courses[schedule] = _Course.of(points)
            yield course.test_rise(text, _FIGURE_6, _RISE_OF_BITS, "Its bits/dim on test images")
    if len(courses) == 2:
        cosine, linear = courses["cosine"], courses["linear"]
        yield cosine.test_sooner(
            linear,
            ("cosine", "linear"),
            "The cosine schedule reaches its optimum, and then overfits, more quickly than the linear one.",
            _FIGURE_6,
            _RISE_OF_BITS,
            f"Least bits/dim at step {cosine.best_step:,} (cosine) and at step {linear.best_step:,} (linear), both with dropout 0.1.",
        )
    for schedule, best in (("linear", 0.1), ("cosine", 0.3)):
        rates = {r.values["dropout"]: distance(r) for r in records if r.values["schedule"] == schedule}
        others = {rate: value for rate, value in rates.items() if value is not None and rate != best}
        if others and len(others) == len(rates) - 1:  # a trial that failed may be the best one
            rate = min(others, key=lambda one: others[one])
            text = f"Of 0.1, 0.2 and 0.3, dropout {best} works best for the {schedule} schedule."
            sides = ((f"dropout {best}", rates.get(best)), (f"the best other, {rate}", others[rate]))
            yield claim(text, "supplement section 1", *sides, distance_name(records))


def _overfitting(records: Records) -> Claims:
    curves = {float(record.values["dropout"]): score_curve(record) for record in records}
    courses = {rate: _Course.of(points) for rate, points in sorted(curves.items()) if len(points) > 1}
    for rate, course in courses.items():
        text = "Over the course of training the distance becomes worse, " + (f"with dropout {rate} too." if rate else "without dropout.")
        yield course.test_rise(text, _FIGURE_7, _RISE_OF_SCORES, "The score")
    without, small, unit = find(records, dropout=0.0), find(records, dropout=0.1), distance_name(records)
    text = "A small amount of dropout improves the best attainable distance."
    yield claim(text, _FIGURE_7, ("best with dropout 0.1", distance(small)), ("best without", distance(without)), unit)
    if 0.0 in courses and 0.1 in courses:
        late, early = courses[0.1].best_step, courses[0.0].best_step
        evidence = f"The best score is at step {late:,} with dropout 0.1, at step {early:,} without."
        text = "With dropout it takes longer to get to the best."
        yield courses[0.0].test_sooner(courses[0.1], ("without dropout", "with dropout 0.1"), text, _FIGURE_7, _RISE_OF_SCORES, evidence)
    for record in records:
        averages = distances_by_weights(record)
        trained = averages.pop("model", None)
        if averages:
            best = min(averages, key=lambda name: averages[name])
            yield claim(
                f"An average of the weights is better than the weights that are trained (dropout {record.values['dropout']}).",
                "supplement section 1, which uses an average throughout",
                (f"decay {best.removeprefix('ema_')}, the best", averages[best]),
                ("the weights themselves", trained),
                f"{unit} at the last step",
            )


_CLAIMS: dict[str, Callable[[Records], Claims]] = {
    "hybrid-weight": _hybrid_weight,
    "objective-schedule": _objective_schedule,
    "lsun-batch-size": _batch_size,
    "cifar10-dropout": _dropout,
    "cond64-overfitting": _overfitting,
    "width": _width,
    "sampling-steps": _sampling_steps,
    "likelihood-steps": _likelihood_steps,
    "vlb-ratio": _vlb_ratio,
    "ensemble": _ensemble,
    "same-noise": _same_noise,
    "two-stage": _two_stage,
}
