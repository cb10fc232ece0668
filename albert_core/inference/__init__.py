"""Uses of a trained run: predictions and export."""
