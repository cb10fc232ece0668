"""Whole training runs timed side by side, in separate processes."""
