"""Whole training runs timed side by side, in processes of their own."""
