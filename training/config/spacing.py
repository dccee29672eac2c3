"""The timesteps that a sampler or a likelihood visits, chosen from the T of training.

Pure Python, so that an experiment can be validated on a client that has no torch.
"""

from __future__ import annotations

from training.config.errors import UserError


def uniform_spacing(num_timesteps: int, num_steps: int) -> tuple[int, ...]:
    """Return K of T timesteps, 1 to T, at an even stride with both ends included; K = 1 keeps T - 1 alone, where sampling begins."""
    return (num_timesteps - 1,) if num_steps == 1 else section_spacing(num_timesteps, (num_steps,))


def section_spacing(num_timesteps: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Split 0..T-1 into equal sections (the first ones longer by one where T does not divide) and stride each.

    Rounding is to the even neighbour on a half, as the released code's; a count of 1 keeps its section's first timestep, as there.

    Raises:
        UserError: A section has fewer timesteps than its count asks for.
    """
    if not counts or len(counts) > num_timesteps:
        raise UserError(f"{len(counts)} sections do not fit into {num_timesteps} timesteps")
    size, longer = divmod(num_timesteps, len(counts))
    kept: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        length = size + (index < longer)
        if not 1 <= count <= length:
            raise UserError(f"a section of {length} timesteps cannot give {count}; ask for 1 to {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 0.0
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return tuple(kept)


def ddim_spacing(num_timesteps: int, num_steps: int) -> tuple[int, ...]:
    """Return every i-th timestep from 0, for the integer i that gives exactly K of them (the released code's `ddimK`).

    The last one is about T - T/K, and T - 1 only where the stride divides T - 1. There is no K = 1, which would be timestep 0 alone.

    Raises:
        UserError: No integer stride gives K timesteps.
    """
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == num_steps:
            return tuple(range(0, num_timesteps, stride))
    possible = sorted({len(range(0, num_timesteps, stride)) for stride in range(1, num_timesteps)})
    nearest = sorted(possible, key=lambda n: abs(n - num_steps))[:2]
    raise UserError(
        f"no integer stride over {num_timesteps} timesteps gives {num_steps} of them; "
        f"the nearest that do are {' and '.join(f'ddim{n}' for n in sorted(nearest))}"
    )


def likelihood_spacing(num_timesteps: int, num_steps: int) -> tuple[int, ...]:
    """Return the uniform K timesteps and every t from 1 to T/K (1-based; 0 to T/K - 1 here): supplement section 5.

    A bound over a strided chain loses most at the smallest timesteps; including all of them repairs it.
    """
    strided = uniform_spacing(num_timesteps, num_steps)
    return tuple(sorted(set(strided) | set(range(num_timesteps // num_steps))))


def learned_count(spacing: str) -> int | None:
    """Return the K of `learned:K`, the K timesteps that were chosen for one checkpoint; None for any other spacing."""
    kind, separator, count = spacing.strip().partition(":")
    return int(count) if kind == "learned" and separator and count.strip().isdecimal() else None


def count_timesteps(spacing: str, num_timesteps: int) -> int:
    """Return the number of timesteps that a spacing visits.

    Raises:
        UserError: As `parse_spacing`, but `learned:K` is known without its checkpoint.
    """
    count = learned_count(spacing)
    if count is None:
        return len(parse_spacing(spacing, num_timesteps))
    if not 1 <= count <= num_timesteps:
        raise UserError(f"spacing {spacing!r} asks for {count} of {num_timesteps} timesteps; use 1 to {num_timesteps}")
    return count


def parse_spacing(spacing: str, num_timesteps: int) -> tuple[int, ...]:
    """Return the kept timesteps, 0-based and increasing, of a spacing as experiments write it.

    Args:
        spacing: "" (all timesteps), "250" (uniform), "10,10,5" (section counts), "ddim50", "nll:100"
            (supplement section 5) or "t:0,5,10" (an explicit list).

    Raises:
        UserError: The text has none of these forms, or asks for more timesteps than T has.
    """
    text = spacing.strip()
    if not text:
        return tuple(range(num_timesteps))
    if learned_count(text) is not None:
        raise UserError(f"the timesteps of {spacing!r} belong to one checkpoint; give others here, like '10' or 't:0,5,10'")
    numbers: tuple[int, ...]
    try:
        if text.startswith("ddim"):
            kind, numbers = "ddim", (int(text.removeprefix("ddim")),)
        elif text.startswith("nll:"):
            kind, numbers = "nll", (int(text.removeprefix("nll:")),)
        elif text.startswith("t:"):
            kind, numbers = "t", tuple(int(part) for part in text.removeprefix("t:").split(","))
        else:
            numbers = tuple(int(part) for part in text.split(","))
            kind = "sections" if len(numbers) > 1 else "uniform"
    except ValueError:
        raise UserError(
            f"spacing {spacing!r} is not understood; use '250', '10,10,5', 'ddim50', 'nll:100', 't:0,5,10' or 'learned:10'"
        ) from None
    if kind == "t":
        bad = [t for t in numbers if not 0 <= t < num_timesteps]
        if bad:
            raise UserError(f"timesteps {bad} of {spacing!r} are not in 0..{num_timesteps - 1}")
        return tuple(sorted(set(numbers)))
    if kind != "sections" and not 1 <= numbers[0] <= num_timesteps:
        raise UserError(f"spacing {spacing!r} asks for {numbers[0]} of {num_timesteps} timesteps; use 1 to {num_timesteps}")
    if kind == "ddim":
        return ddim_spacing(num_timesteps, numbers[0])
    if kind == "nll":
        return likelihood_spacing(num_timesteps, numbers[0])
    if kind == "uniform":
        return uniform_spacing(num_timesteps, numbers[0])
    return section_spacing(num_timesteps, numbers)
