"""The figures of an ablation as the paper draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evaluation.ablations.claims.claim import bits as bits_of
from evaluation.ablations.claims.claim import bound_ratio, score_curve
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.page.drawing import Frame, Line, Picture, draw_bars, draw_lines
from evaluation.ablations.page.table import TableRow, distance_name
from evaluation.ablations.trials.joint import ENDS_SHARE
from evaluation.ablations.trials.record import TrialRecord

Pictures = list[Picture | None]


def pictures(request: AblationRequest, records: Sequence[TrialRecord], rows: Sequence[TableRow]) -> list[Picture]:
    """The figures of an ablation; none of a curve that has no points.

    Args:
        request: The ablation.
        records: Of its trials; failed ones are left out.
        rows: The table.
    """
    done = [record for record in records if not record.error]
    draw = _DRAWN.get(request.name) if not request.grid else None
    drawn = draw(done) if draw else []
    bars = draw_bars(rows, distance_name(records)) if draw is None else None
    return [picture for picture in (*drawn, bars) if picture is not None]


def _of(record: TrialRecord, measure: str, x: str, y: str, **wanted: Any) -> dict[float, tuple[float, float]]:
    points = (record.measures.get(measure) or {}).get("points", ())
    return {
        float(p[x]): (float(p[y]), float(p.get("standard_error") or 0.0))
        for p in points
        if p[y] is not None and all(p[name] == value for name, value in wanted.items())
    }


def _better_below(records: Sequence[TrialRecord], measure: str) -> str:
    name = next((record.measures[measure]["distance_name"] for record in records if record.measures.get(measure)), "distance")
    return f"{name}, lower is better"


def _fifty_steps(records: Sequence[TrialRecord]) -> dict[float, str]:
    """Where the paper has DDIM and the ancestral sampler change places; divided by ten, as every count is, on the digits."""
    tiny = any(record.data.get("name") == "digits" for record in records)
    return {5.0: "5 steps: the paper's 50, by ten"} if tiny else {50.0: "50 steps, where the paper's curves cross"}


def _sampling_steps(records: Sequence[TrialRecord]) -> Pictures:
    lines = [
        Line(
            label=f"{_words(record)}, {'DDIM' if method == 'ddim' else method}",
            points=_of(record, "sampling-steps", "num_steps", "distance", method=method),
            style=number,
            dashes=int(method == "ddim"),
        )
        for number, record in enumerate(records)
        for method in ("ancestral", "ddim")
    ]
    caption = (
        "Distance by number of sampling steps, as supplement figure 1 draws it: whole lines are the ancestral sampler, dashed ones "
        "DDIM. Bands are one standard error."
    )
    frame = Frame(x="sampling steps", y=_better_below(records, "sampling-steps"), caption=caption, log_x=True, places=_fifty_steps(records))
    return [draw_lines(lines, frame)]


def _figure_1(records: Sequence[TrialRecord]) -> Pictures:
    largest = max((record.values["global_batch_size"] for record in records), default=0)
    lines = []
    for record in records:
        hybrid, batch = record.values["objective"] == "hybrid", record.values["global_batch_size"]
        lines.append(
            Line(
                label=f"{'L_hybrid' if hybrid else 'DDIM (L_simple)'}, batch {batch}, rate {record.values['learning_rate']:g}",
                points=_of(record, "figure-1", "num_steps", "distance"),
                style=2 * int(not hybrid) + int(batch < largest),
                dashes=int(not hybrid),
            )
        )
    caption = "Distance by number of sampling steps for two batch sizes and learning rates (supplement figure 1)."
    frame = Frame(x="sampling steps", y=_better_below(records, "figure-1"), caption=caption, log_x=True, places=_fifty_steps(records))
    return [draw_lines(lines, frame)]


def _likelihood_steps(records: Sequence[TrialRecord]) -> Pictures:
    lines = [
        Line(
            label=f"{_words(record)}, {words}",
            points=_bits_by_steps(record, spacing),
            style=number,
            dashes=int(spacing == "strided"),
        ).without_errors()
        for number, record in enumerate(records)
        for spacing, words in (("with-small-t", "with every t to T/K"), ("strided", "strided alone"))
    ]
    caption = "Negative log-likelihood by number of evaluation steps (supplement figure 5); dashed: the even stride alone."
    return [draw_lines(lines, Frame(x="evaluation steps K", y="bits/dim, lower is better", caption=caption, log_x=True))]


def _bits_by_steps(record: TrialRecord, spacing: str) -> dict[float, tuple[float, float]]:
    """Of either spacing; all T steps are the same in both, and end both curves."""
    strided = _of(record, "likelihood-steps", "num_steps", "bits_per_dim", spacing="strided")
    if spacing == "strided" or not strided:
        return strided
    return {**_of(record, "likelihood-steps", "num_steps", "bits_per_dim", spacing=spacing), max(strided): strided[max(strided)]}


def _vlb_ratio(records: Sequence[TrialRecord]) -> Pictures:
    roles = {record.role: record for record in records}
    if not {"hybrid", "vlb"} <= roles.keys():
        return []
    ratio = bound_ratio(roles["hybrid"], roles["vlb"])
    width = len(ratio) // ENDS_SHARE
    terms = [
        Line(
            label=name, points={t + 1: (max(term, 1e-9), 0.0) for t, term in enumerate(roles[role].measures["bound"]["per_t"])}, style=style
        )
        for style, (role, name) in enumerate((("hybrid", "theta_hybrid"), ("vlb", "theta_vlb")))
    ]
    timestep = "timestep t (1 is the least noise)"
    return [
        draw_lines(
            [Line(label="ratio", points={t + 1: (value, 0.0) for t, value in enumerate(ratio)})],
            Frame(
                x=timestep,
                y="term of theta_hybrid / term of theta_vlb",
                caption="Ratio of the terms of the bound (supplement figure 3): below 1, theta_hybrid is the better one there.",
                level=1.0,
                places={float(width): f"the ensemble's ends, {width} timesteps each", float(len(ratio) - width): ""},
            ),
        ),
        draw_lines(terms, Frame(x=timestep, y="term of the bound, bits/dim", caption="The terms themselves.", log_x=True, log_y=True)),
    ]


def _dropout(records: Sequence[TrialRecord]) -> Pictures:
    step, test_bits = "training step", "bits/dim of test images"
    figure_6 = [record for record in records if record.values["dropout"] == 0.1]
    scores = [
        Line(label=str(record.values["schedule"]), points={at: (value, 0.0) for at, value in score_curve(record).items()}, style=number)
        for number, record in enumerate(figure_6)
    ]
    bits = {
        record.label: Line(
            label=f"{record.values['schedule']}, dropout {record.values['dropout']}",
            points=_of(record, "history-likelihood", "step", "bits_per_dim"),
            style=("linear", "cosine").index(record.values["schedule"]),
            dashes=round(10 * record.values["dropout"]) - 1,
        ).without_errors()
        for record in records
    }
    course = "over the course of training, dropout 0.1 (supplement figure 6"
    return [
        draw_lines(
            scores,
            Frame(x=step, y=_better_below(records, "history"), caption=f"Distance {course}, top): few-step scores.", legend="schedule"),
        ),
        draw_lines(
            [bits[record.label] for record in figure_6],
            Frame(x=step, y=test_bits, caption=f"Negative log-likelihood {course}, bottom).", legend="schedule"),
        ),
        draw_lines(list(bits.values()), Frame(x=step, y=test_bits, caption="The same for every dropout of the sweep.")),
    ]


def _overfitting(records: Sequence[TrialRecord]) -> Pictures:
    weights = list(dict.fromkeys(w for r in records for p in (r.measures.get("history") or {}).get("points", ()) for w in p["scores"]))
    lines = [
        Line(
            label=f"dropout {record.values['dropout']}, decay {name.removeprefix('ema_')}",
            points={at: (value, 0.0) for at, value in score_curve(record, name).items()},
            style=weights.index(name),
            dashes=number,
        )
        for number, record in enumerate(records)
        for name in weights
    ]
    caption = (
        "Distance over the course of training for every dropout and decay of the average (supplement figure 7): a colour is a decay, "
        "a dash a dropout. Few-step scores on the same noise."
    )
    return [draw_lines(lines, Frame(x="training step", y=_better_below(records, "history"), caption=caption))]


def _width(records: Sequence[TrialRecord]) -> Pictures:
    """The main paper's fits are drawn where the images are those that they were made for."""
    fitted = any(record.data.get("name") == "imagenet64-official" for record in records)
    distances, bits = [], []
    for number, record in enumerate(records):
        per_step, label = float(record.measures.get("flops_per_step") or 0.0), f"C = {record.values['width']}"
        scores = {per_step * at: (value, 0.0) for at, value in score_curve(record).items()}
        distances.append(Line(label=label, points=scores, style=number))
        taken = bits_of(record)
        bits.append(Line(label=label, points={per_step * record.step: taken} if taken else {}, style=number))
    compute = "training compute, FLOPs"
    return [
        draw_lines(
            distances,
            Frame(
                x=compute,
                y=_better_below(records, "history"),
                caption="Distance by training compute, a line a width (main paper, scaling).",
                log_x=True,
                published=_fit(distances, 4.00, 2.5e-25, 0.22) if fitted else (),
            ),
        ),
        draw_lines(
            bits,
            Frame(
                x=compute,
                y="bits/dim, lower is better",
                caption="Bits/dim of the evaluated checkpoint by training compute (main paper, scaling).",
                log_x=True,
                published=_fit(bits, 3.40, 3.0e-15, 0.17) if fitted else (),
            ),
        ),
    ]


def _fit(lines: Sequence[Line], floor: float, scale: float, power: float) -> list[Line]:
    """The main paper's power law, floor + (scale C)^-power at C FLOPs, over the range of the lines."""
    places = [float(at) for line in lines for at in line.points]
    if not places:
        return []
    low, high = min(places), max(places)
    compute = [low * (high / low) ** (k / 20) for k in range(21)]
    points = {at: (floor + (scale * at) ** -power, 0.0) for at in compute}
    return [Line(label="the paper's fit", points=points)]


def _words(record: TrialRecord) -> str:
    """A run of an evaluation, as a legend says it."""
    values = record.values
    parts = [f"L_{values['objective']}"] if "objective" in values else []
    parts += [str(values["schedule"])] if "schedule" in values else []
    if values.get("data") not in (None, "digits"):
        parts.append(str(values["data"]))
    return ", ".join(parts) or record.label


_DRAWN: dict[str, Callable[[Sequence[TrialRecord]], Pictures]] = {
    "sampling-steps": _sampling_steps,
    "lsun-batch-size": _figure_1,
    "likelihood-steps": _likelihood_steps,
    "vlb-ratio": _vlb_ratio,
    "cifar10-dropout": _dropout,
    "cond64-overfitting": _overfitting,
    "width": _width,
    "same-noise": lambda records: [],
}
