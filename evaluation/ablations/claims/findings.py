"""Which of the paper's claims each ablation tests, of trained models and of what is drawn from them.

What concerns the course of training is in `evaluation.ablations.claims.training_course`, what two models do together in
`evaluation.ablations.claims.model_pairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from evaluation.ablations.claims import model_pairs as findings_of_two
from evaluation.ablations.claims import training_course as findings_of_training
from evaluation.ablations.claims.claim import Estimate, Finding, bits, change, curve, distance, mean, pick, smaller, unit_of
from evaluation.ablations.trials.record import TrialRecord

Records = Sequence[TrialRecord]
Found = list[Finding | None]

_BITS = "bits/dim"
_TABLES = "main paper, tables 1 and 2"
_FIGURE_1 = "supplement section 2, figure 1"


def findings(name: str, records: Iterable[TrialRecord]) -> list[Finding]:
    """What the records of that ablation say; nothing of claims for which a trial is missing.

    Args:
        name: The ablation's.
        records: Of its trials; failed ones are left out.
    """
    test = _TESTS.get(name)
    done = [record for record in records if not record.error]
    return [finding for finding in test(done) if finding is not None] if test and done else []


def _hybrid_weight(records: Records) -> Found:
    source, unit = "supplement section 1, table 1", unit_of(records)
    stop, free = (
        [distance(pick(records, stop_gradient=stopped, vlb_weight=weight)) for weight in (0.001, 0.01)] for stopped in (True, False)
    )
    return [
        smaller("The stop-gradient improves sample quality.", source, ("mean with it", mean(stop)), ("without", mean(free)), unit),
        smaller(
            "The stop-gradient reduces the sensitivity to lambda.",
            source,
            ("change from lambda 0.001 to 0.01 with it", change(*stop)),
            ("without", change(*free)),
            unit,
        ),
    ]


def _objective_schedule(records: Records) -> Found:
    data_sets = list(dict.fromkeys(str(record.values["data"]) for record in records))
    found: Found = []
    for data in data_sets:
        rows = [record for record in records if record.values["data"] == data]
        found += _objectives_on(rows, f" ({data})" if len(data_sets) > 1 else "")
    return found


def _objectives_on(rows: Records, on: str) -> Found:
    unit, whole = unit_of(rows), max(record.values["num_timesteps"] for record in rows)

    def of(schedule: str, objective: str) -> TrialRecord | None:
        return pick(rows, num_timesteps=whole, schedule=schedule, objective=objective)

    simple, hybrid, vlb = (of("cosine", objective) for objective in ("simple", "hybrid", "vlb"))
    short = next((record for record in rows if record.values["num_timesteps"] < whole), None)
    return [
        smaller(
            f"L_hybrid has a better likelihood than L_simple{on}.",
            _TABLES,
            ("L_hybrid", bits(hybrid)),
            ("L_simple", bits(simple)),
            _BITS,
        ),
        smaller(
            f"L_vlb has a better likelihood than L_hybrid{on}.",
            _TABLES,
            ("L_vlb", bits(vlb)),
            ("L_hybrid", bits(hybrid)),
            _BITS,
        ),
        smaller(
            f"L_vlb has worse samples than L_hybrid{on}.",
            _TABLES,
            ("L_hybrid", distance(hybrid)),
            ("L_vlb", distance(vlb)),
            unit,
        ),
        smaller(
            f"The cosine schedule improves the likelihood of L_hybrid{on}.",
            _TABLES,
            ("cosine", bits(hybrid)),
            ("linear", bits(of("linear", "hybrid"))),
            _BITS,
        ),
        smaller(
            f"More timesteps improve the likelihood of L_simple, linear{on}.",
            _TABLES,
            (f"T = {whole:,}", bits(of("linear", "simple"))),
            (f"T = {short.values['num_timesteps']:,}" if short else "fewer", bits(short)),
            _BITS,
        ),
    ]


def _sampling_steps(records: Records) -> Found:
    with_all = "cifar10" if any(record.values["data"] == "cifar10" for record in records) else str(records[0].values["data"])
    rows = [record for record in records if record.values["data"] == with_all]
    measure = "sampling-steps"
    hybrid = pick(rows, schedule="cosine", objective="hybrid")
    ours, ddim = (curve(hybrid, measure, method=method) for method in ("ancestral", "ddim"))
    if len(ours) < 3 or hybrid is None:
        return []
    linear = curve(pick(rows, schedule="linear", objective="hybrid"), measure, method="ancestral")
    fixed = curve(pick(rows, schedule="cosine", objective="simple"), measure, method="ancestral")
    whole, few = max(ours), min(ours)
    fortieth = min(ours, key=lambda count: abs(count - whole // 40))
    most = max(ddim, default=few)
    unit = str(hybrid.measures[measure]["distance_name"])
    return [
        smaller(
            f"With the fewest steps ({few} of {whole:,}) DDIM is better than the ancestral sampler.",
            _FIGURE_1,
            ("DDIM", ddim.get(few)),
            ("ancestral", ours.get(few)),
            unit,
        ),
        smaller(
            f"With many steps ({most} of {whole:,}) the ancestral sampler with a learned variance is better than DDIM.",
            _FIGURE_1,
            ("ancestral", ours.get(most)),
            ("DDIM", ddim.get(most)),
            unit,
        ),
        smaller(
            f"With few steps ({fortieth} of {whole:,}) the cosine schedule is better than the linear one.",
            "main paper, FID by sampling steps",
            ("cosine", ours.get(fortieth)),
            ("linear", linear.get(fortieth)),
            unit,
        ),
        smaller(
            f"With few steps ({fortieth} of {whole:,}) a learned variance is better than the fixed one of L_simple.",
            "main paper, FID by sampling steps",
            ("L_hybrid", ours.get(fortieth)),
            ("L_simple", fixed.get(fortieth)),
            unit,
        ),
    ]


def _lsun(records: Records) -> Found:
    sizes = sorted({record.values["global_batch_size"] for record in records})
    curves = {
        (objective, size): curve(pick(records, objective=objective, global_batch_size=size), "figure-1")
        for objective in ("hybrid", "simple")
        for size in sizes
    }
    counts = set.intersection(*(set(points) for points in curves.values()))
    if len(counts) < 2 or len(sizes) < 2:
        return []
    few, many, small, large = min(counts), max(counts), sizes[0], sizes[-1]
    unit = unit_of(records)

    def best(objective: str, count: int) -> Estimate:
        return min(curves[objective, size][count] for size in sizes)

    return [
        smaller(
            f"With few steps ({few}) DDIM outperforms L_hybrid.",
            _FIGURE_1,
            ("DDIM, better batch", best("simple", few)),
            ("L_hybrid, better batch", best("hybrid", few)),
            unit,
        ),
        smaller(
            f"With many steps ({many}) L_hybrid outperforms DDIM.",
            _FIGURE_1,
            ("L_hybrid, better batch", best("hybrid", many)),
            ("DDIM, better batch", best("simple", many)),
            unit,
        ),
        smaller(
            f"DDIM benefits from the smaller batch and learning rate ({few} steps).",
            _FIGURE_1,
            (f"batch {small}", curves["simple", small][few]),
            (f"batch {large}", curves["simple", large][few]),
            unit,
        ),
        smaller(
            f"L_hybrid takes advantage of the larger batch and learning rate ({many} steps).",
            _FIGURE_1,
            (f"batch {large}", curves["hybrid", large][many]),
            (f"batch {small}", curves["hybrid", small][many]),
            unit,
        ),
    ]


def _likelihood_steps(records: Records) -> Found:
    found: Found = []
    for record in records:
        strided, repaired = (curve(record, "likelihood-steps", spacing=spacing) for spacing in ("strided", "with-small-t"))
        if not repaired or not strided:
            continue
        few, whole = min(repaired), max(strided)
        # The spread over images is common to both, which see the same images on the same noise: it is no error of the difference.
        found.append(
            smaller(
                f"Adding every t from 1 to T/K repairs the likelihood of {few} strided steps ({record.role}).",
                "supplement section 5, figure 5",
                ("with them", (repaired[few][0], 0.0)),
                ("strided alone", (strided[few][0], 0.0)),
                f"{_BITS} (all {whole:,} steps: {strided[whole][0]:.4g})",
            )
        )
    return found


_TESTS: dict[str, Callable[[Records], Found]] = {
    "hybrid-weight": _hybrid_weight,
    "objective-schedule": _objective_schedule,
    "lsun-batch-size": _lsun,
    "cifar10-dropout": findings_of_training.dropout,
    "cond64-overfitting": findings_of_training.overfitting,
    "width": findings_of_training.width,
    "sampling-steps": _sampling_steps,
    "likelihood-steps": _likelihood_steps,
    "vlb-ratio": findings_of_two.vlb_ratio,
    "ensemble": findings_of_two.ensemble,
    "same-noise": findings_of_two.same_noise,
    "two-stage": findings_of_two.two_stage,
}
