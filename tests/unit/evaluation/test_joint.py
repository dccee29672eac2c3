"""The record of a joint measurement names its inputs, so that it is measured again when one of them was trained again."""

from evaluation.ablations.trials.joint import input_digests
from evaluation.ablations.trials.record import TrialRecord
from training.checkpoints import checkpoint


def test_training_a_trial_again_or_choosing_other_weights_changes_the_input_digests(run_uri: str) -> None:
    trials = [
        TrialRecord(label=label, checkpoint_uri=checkpoint.checkpoint_uri(run_uri, step), weights="ema_0.99")
        for label, step in (("hybrid", 100), ("vlb", 200))
    ]
    recorded = TrialRecord(label="ensemble", data={"inputs": input_digests(trials)})
    stored = TrialRecord.from_dict(recorded.to_dict())
    assert stored.data["inputs"] == input_digests(trials)
    assert stored.data["inputs"] != input_digests([trials[0], TrialRecord(**{**trials[1].to_dict(), "own": (), "weights": "model"})])
    files = {name: checkpoint.load_bytes(trials[0].checkpoint_uri, name) for name in checkpoint.file_names(trials[0].checkpoint_uri)}
    files["ema_0.99.pt"] = checkpoint.load_bytes(trials[0].checkpoint_uri, "model.pt")
    checkpoint.save(run_uri, 100, files)
    assert stored.data["inputs"] != input_digests(trials)
