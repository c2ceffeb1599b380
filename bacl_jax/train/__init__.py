"""Training: state and step, checkpoints, the loop, metrics."""
