"""What a run on a cluster loses to failures, slow devices and checkpoints, and how it scales."""
