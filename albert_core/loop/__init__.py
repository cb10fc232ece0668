"""The training loop: one story in `train`, and its parts."""
