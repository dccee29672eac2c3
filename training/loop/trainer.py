"""The training loop: data-parallel, resumable, on a CPU to the bit, and independent of what started it.

It runs under Ray Train (`training.launch.ray_train`), under torchrun and under plain Python. Every random draw is keyed by
(seed, step, index of the image in the global batch), so the model receives the same numbers for any number of workers, any microbatch and
any interruption.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.config.experiment import Experiment, Resources
from training.console import say
from training.diffusion.losses import training_losses
from training.diffusion.noise import Stream, keyed_normal, keyed_uniform
from training.diffusion.pixels import Batch, to_model_range
from training.diffusion.process import make_process
from training.distributed.heartbeats import Heartbeats
from training.distributed.ranks import AsyncStopFlag, Network, broadcast_object, gather, shard_bounds
from training.loop.interfaces import BatchSource, DivergedError, Hooks, Outcome, TrainingError
from training.loop.meter import Meter
from training.loop.train_state import TrainState, learning_rate_at
from training.models.dropout import dropout_key
from training.models.layers import make_low_res

MAX_CONSECUTIVE_SKIPS = 10
MAX_UPDATES_BETWEEN_LOGS = 50
_SHARE_OF_TIMEOUT = 0.5
"""Part of a collective's time-out that a rank has waited when an error of the network means that another rank hangs."""


def is_log_boundary(step: int, checkpoint_interval: int) -> bool:
    """Return whether metrics are logged after `step` updates.

    The checkpoint interval is cut into the fewest equal parts (to within one update) of at most `MAX_UPDATES_BETWEEN_LOGS`. Reading the
    metrics makes the host wait for the device. Every checkpoint is a boundary, because only there the host learns of skipped updates.
    """
    parts = -(-checkpoint_interval // MAX_UPDATES_BETWEEN_LOGS)
    return step * parts // checkpoint_interval > (step - 1) * parts // checkpoint_interval


def check_batch_size(experiment: Experiment, num_workers: int) -> None:
    """Raise a `TrainingError` unless the global batch has an image for each worker."""
    if experiment.optim.global_batch_size < num_workers:
        raise TrainingError(
            f"optim.global_batch_size {experiment.optim.global_batch_size} is smaller than the {num_workers} workers; "
            "use fewer workers or a larger batch"
        )


class Trainer:
    """One worker of a training run.

    Args:
        resources: Microbatch, precision and other settings that change only the speed.
        world_size: Number of workers; each takes an equal shard of the global batch (the first ones one image more).
    """

    def __init__(
        self,
        experiment: Experiment,
        resources: Resources,
        batches: BatchSource,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        hooks: Hooks | None = None,
    ) -> None:
        check_batch_size(experiment, world_size)
        self.experiment = experiment
        self.resources = resources
        self.batches = batches
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.hooks = hooks or Hooks()
        self.step = 0
        self.rollbacks = 0
        self.skipped_total = 0
        self._skipping = False  # True: the latest updates were skipped. Training may be diverging, so no checkpoint is due
        self._postponed: int | None = None  # the step whose checkpoint was due while updates were skipped

        self.state = TrainState(experiment, resources, self.device)
        self.process = make_process(experiment.diffusion)
        self._network = Network(self.state.model, resources, self.device, world_size)
        self._stop_flag = AsyncStopFlag(self.device) if world_size > 1 else None
        self._meter = Meter(self.device)
        # NCCL ends a process that waited too long without naming the missing rank, so the heartbeats name it shortly before.
        alarm = max(0.5 * resources.collective_timeout_seconds, resources.collective_timeout_seconds - 15.0)
        on_gpu = self.device.type == "cuda"
        self._heartbeats = Heartbeats(rank, world_size, alarm_seconds=alarm if on_gpu else None) if world_size > 1 else None
        self._microbatch_size = resources.microbatch_size

    # -- state ---------------------------------------------------------------------------------------------------

    def checkpoint_files(self) -> dict[str, Any]:
        """Return the files of a checkpoint, by name; the tensors are the live ones, for `Hooks.save` to copy."""
        progress = {"step": self.step, "rollbacks": self.rollbacks, "skipped_total": self.skipped_total}
        return {"experiment.json": self.experiment.to_json().encode(), "state.json": progress} | self.state.files()

    def restore(self, read: Callable[[str], Any]) -> None:
        """Restore a checkpoint."""
        progress = read("state.json")
        self.state.restore(read)
        self.step = int(progress["step"])
        self.rollbacks = int(progress["rollbacks"])
        self.skipped_total = int(progress["skipped_total"])
        self._meter = Meter(self.device)
        if "unlogged" in progress:
            self._meter.load_state(progress["unlogged"], self.rank, self.world_size)

    # -- training ------------------------------------------------------------------------------------------------

    def train(self, num_steps: int | None = None) -> Outcome:
        """Train to the experiment's last step, or to `num_steps` updates in all.

        Raises:
            DivergedError: `MAX_CONSECUTIVE_SKIPS` updates in a row had a gradient that is not finite; raised at the next log boundary.
            TrainingError: Another rank did not answer until a collective's time-out; the message names it.
            RuntimeError: The network between the ranks failed in another way.
        """
        try:
            return self._train(num_steps)
        except RuntimeError as error:
            # DistBackendError is NCCL's; gloo has only the message: "Timed out waiting", or "Application timeout caused pair closure".
            hung = isinstance(error, dist.DistBackendError) or re.search("timed out|timeout", str(error), re.IGNORECASE)
            if self._heartbeats is None or isinstance(error, TrainingError) or not hung:
                raise
            waited = self._heartbeats.waited_seconds()
            if waited < _SHARE_OF_TIMEOUT * self.resources.collective_timeout_seconds:  # such as a connection that was reset
                raise
            raise TrainingError(
                f"{self._heartbeats.describe_stragglers()}; rank {self.rank} waited {waited:.0f} s. "
                "See that worker's machine; training resumes from the latest checkpoint"
            ) from error

    def _train(self, num_steps: int | None) -> Outcome:
        optim = self.experiment.optim
        last = optim.num_steps if num_steps is None else min(num_steps, optim.num_steps)
        # A run that stopped early may have been lost before its result was written: it does not train on.
        reason = self._reason_to_stop() if 0 < self.step < last else None
        if reason is not None:
            return Outcome(step=self.step, stop_reason=reason)
        self._meter.restart_clock()
        bounds = shard_bounds(optim.global_batch_size, self.rank, self.world_size)
        batches = self.batches.batches(self.step, last - self.step, *bounds, pin_memory=self.device.type == "cuda")
        self._beat(waiting=False)
        with contextlib.closing(batches) as stream:  # type: ignore[type-var]
            for batch in stream:
                self._update(batch)
                self.step += 1
                self._beat(waiting=False)
                is_boundary = is_log_boundary(self.step, optim.checkpoint_interval) or self.step == last
                reason = self._log() if is_boundary else self._interruption()
                if self.step == last or reason is not None or (is_boundary and self._is_checkpoint_due()):
                    self._save()
                if reason is not None:
                    break
        return Outcome(step=self.step, stop_reason=reason)

    def _draw_seed(self) -> int:
        # After a roll-back the draws must differ, or the run would diverge in the same way again.
        return (self.experiment.seed + 0x9E3779B1 * self.rollbacks) % 2**32

    def _update(self, batch: Batch) -> None:
        """Do one optimiser update on the global batch of this step, of which `batch` is this worker's shard."""
        self.state.optimizer.zero_grad(set_to_none=True)
        images, indices = (x.to(self.device, non_blocking=True) for x in (batch.images, batch.indices))
        labels = batch.labels.to(self.device, non_blocking=True) if batch.labels is not None else None
        if not self._microbatch_size:
            self._microbatch_size = self._find_microbatch(images, labels, indices) if self.device.type == "cuda" else len(images)
        size = self._microbatch_size
        drawn: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(images), size):
            part, is_last = slice(start, start + size), start + size >= len(images)
            with contextlib.nullcontext() if is_last else self._network.no_sync():
                drawn.append(self._backward(images[part], labels[part] if labels is not None else None, indices[part], waits=is_last))
        self._apply_gradient()
        self._observe_timesteps(drawn)

    def _backward(self, images: Tensor, labels: Tensor | None, indices: Tensor, *, waits: bool) -> tuple[Tensor, Tensor]:
        """Add the gradient of a part of the global batch; return (t, unweighted loss) of its images.

        Args:
            waits: DDP waits for the other ranks within the backward pass, and averages their gradients.
        """
        optim, seed = self.experiment.optim, self._draw_seed()
        x_0 = to_model_range(images)
        if self.experiment.data.random_flip:
            flip = keyed_uniform(seed, Stream.TRAIN_FLIP, indices) < 0.5
            x_0 = torch.where(flip[:, None, None, None], x_0.flip(-1), x_0)
        t, weights = self.state.timestep_sampler.sample(seed, self.step, indices)
        eps = keyed_normal(seed, Stream.TRAIN_NOISE, indices, tuple(x_0.shape[1:]))
        terms = training_losses(self.process, self._network, x_0, t, eps, self._conditioning(x_0, labels, indices, seed))
        # DDP averages over ranks, so each rank's part of the mean over the global batch is multiplied by their number.
        loss = (terms.loss * weights).sum() * (self.world_size / optim.global_batch_size)
        if waits:
            self._beat(waiting=True)  # to the end of the update, in which the sampler of t may wait once more
        loss.backward()  # type: ignore[no-untyped-call]
        self._meter.add_losses(t, weights, terms, self.process.num_timesteps)
        return t, terms.loss.detach()

    def _find_microbatch(self, images: Tensor, labels: Tensor | None, indices: Tensor) -> int:
        """Find the microbatch size by trial on the first batch; the trial's gradients and sums are dropped."""

        def attempt(size: int) -> None:
            with self._network.no_sync():
                self._backward(images[:size], labels[:size] if labels is not None else None, indices[:size], waits=False)

        meter, self._meter = self._meter, Meter(self.device)
        # Adam's moments are allocated at the first update; their memory must stay free.
        moments = [torch.empty_like(p) for p in self.state.parameters for _ in range(2)] if not self.state.optimizer.state else []
        size = _largest_that_fits(attempt, len(images))
        del moments
        self.state.optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats(self.device)  # the peak of a failed attempt does not count
        self._meter = meter
        self._meter.restart_clock()
        return size

    def _conditioning(self, x_0: Tensor, labels: Tensor | None, indices: Tensor, seed: int) -> dict[str, Tensor]:
        config = self.experiment.model
        conditioning: dict[str, Tensor] = {}
        if config.class_conditional:
            if labels is None:
                raise TrainingError(f"the experiment is class-conditional but data set {self.experiment.data.name!r} gives no labels")
            if config.label_dropout > 0:
                dropped = keyed_uniform(seed, Stream.LABEL_DROPOUT, indices) < config.label_dropout
                labels = torch.where(dropped, self.experiment.data.num_classes, labels)
            conditioning["y"] = labels
        if config.low_res_size is not None:
            conditioning["low_res"] = make_low_res(x_0, config.low_res_size)
        if config.dropout > 0:
            conditioning["dropout_key"] = dropout_key(seed, self.step, indices)
        return conditioning

    def _apply_gradient(self) -> None:
        """Clip the gradient if configured, and update the weights by it and the averages by the weights.

        A gradient that is not finite leaves the weights as they are; the averages move towards them all the same. The device decides it
        (the fused optimiser's `found_inf`), so that no step waits for the host.
        """
        gradients = [p.grad for p in self.state.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        clip = self.experiment.optim.grad_clip_norm
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.state.parameters, clip, norm)
        found_inf = (~torch.isfinite(norm)).to(torch.float32)
        learning_rate = learning_rate_at(self.step, self.experiment.optim.learning_rate, self.experiment.optim.lr_anneal_steps)
        self.state.update(self.step, learning_rate, found_inf)
        self._meter.add_gradient(norm, found_inf)

    def _observe_timesteps(self, drawn: list[tuple[Tensor, Tensor]]) -> None:
        """Update the sampler of t by the losses of the global batch, in the batch's order on every rank."""
        if self.experiment.diffusion.timestep_sampler == "uniform":
            return
        batch_size = self.experiment.optim.global_batch_size
        t, losses = (gather(torch.cat(parts), batch_size, self.world_size) for parts in zip(*drawn, strict=True))
        self.state.timestep_sampler.update(t, losses)

    # -- boundaries ----------------------------------------------------------------------------------------------

    def _log(self) -> str | None:
        """Log the mean metrics of all ranks; return the reason to stop, the same on every rank, or None."""
        with self._waiting():
            metrics = self._meter.reduce(self.world_size)
        skipped = int(metrics.pop("skipped"))
        self.skipped_total += skipped
        self._skipping = metrics.pop("consecutive_skips") > 0
        if metrics.pop("longest_skips") >= MAX_CONSECUTIVE_SKIPS:
            raise DivergedError(
                f"the gradient was not finite for {MAX_CONSECUTIVE_SKIPS} updates in a row before step {self.step}; "
                f"try a lower optim.learning_rate or optim.grad_clip_norm=1"
            )
        if self.rank == 0:
            optim = self.experiment.optim
            metrics |= {
                "learning_rate": learning_rate_at(self.step - 1, optim.learning_rate, optim.lr_anneal_steps),
                "images_per_second": optim.global_batch_size * metrics.pop("updates") / metrics["seconds"],
                "skipped_updates": float(self.skipped_total),
            } | {f"ema_distance_{decay}": value for decay, value in self.state.ema.distances(self.state.model).items()}
            self.hooks.log(self.step, metrics)
        return self._reason_to_stop()

    def _reason_to_stop(self) -> str | None:
        """Return the reason to stop at this boundary, the same on every rank, or None."""
        reason: str | None = None
        if self.rank == 0:
            reason = self.hooks.should_stop(self.step)
            self._meter.restart_clock()  # a single process may have taken a score meanwhile
        with self._waiting():
            agreed: str | None = broadcast_object(reason, self.world_size)
        return agreed

    def _interruption(self) -> str | None:
        """Return the reason to stop between two log boundaries, the same on every rank, or None."""
        reason = self.hooks.interruption() if self.rank == 0 else None
        if self._stop_flag is None:
            return reason
        with self._waiting():
            if not self._stop_flag.exchange(reason is not None):
                return None
            agreed: str | None = broadcast_object(reason, self.world_size)
        return agreed

    def _is_checkpoint_due(self) -> bool:
        """Return whether this log boundary has a checkpoint, the same on every rank.

        A checkpoint that is due while updates are skipped is saved at the first boundary after a good one. That is a step of its own,
        which has no score and no snapshot. The one that guides the final evaluation can't wait, as it is found by its step; if training
        diverges, `rollback` passes it over, because its state says that updates were skipped.
        """
        optim, guide = self.experiment.optim, self.experiment.evaluation.sampling.guidance_step
        if self.step % optim.checkpoint_interval:
            if self._postponed is None or self._skipping:
                return False
            self._tell(f"the checkpoint that was due at step {self._postponed:,} is saved now, at step {self.step:,}, without a score")
            return True
        if not self._skipping:
            return True
        reason = "the latest updates were skipped, as their gradients were not finite"
        if self.step == guide:
            self._tell(f"{reason}; the checkpoint of step {self.step:,} is saved all the same, because it guides the final evaluation")
            return True
        self._postponed = self.step
        self._tell(
            f"{reason}; step {self.step:,} has no checkpoint and no score, and one is saved after the next update that is not skipped"
        )
        return False

    def _save(self) -> None:
        self._postponed = None
        unlogged = None
        if self._meter.updates or self._skipping:
            with self._waiting():
                unlogged = self._meter.state(self.world_size)
        if self.rank == 0:
            files = self.checkpoint_files()
            if unlogged is not None:
                files["state.json"]["unlogged"] = unlogged
            self.hooks.save(self.step, files)

    def close(self) -> None:
        """End the heartbeats; training is over."""
        if self._heartbeats is not None:
            self._heartbeats.end()

    def _tell(self, message: str) -> None:
        if self.rank == 0:
            say(message)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Publish that this rank waits for the others inside the block; after an error it still says so, for `train` to read."""
        self._beat(waiting=True)
        yield
        self._beat(waiting=False)

    def _beat(self, *, waiting: bool) -> None:
        if self._heartbeats is not None:
            self._heartbeats.beat(self.step, waiting=waiting)


def _largest_that_fits(attempt: Callable[[int], None], shard_size: int) -> int:
    """Return the largest of n, n/2, n/4, ... (rounded up) images for which an attempt does not run out of memory, from n = `shard_size`.

    Raises:
        torch.OutOfMemoryError: Not even one image fits.
    """
    size = shard_size
    while True:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        else:
            return size
        # Outside the except clause, whose traceback would keep the failed attempt's tensors alive.
        torch.cuda.empty_cache()
        size = -(-size // 2)
