"""The time of a training step from shape, layout and hardware, and its check against published runs."""
