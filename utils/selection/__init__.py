"""Rules, per-sample scores and the selected set."""
