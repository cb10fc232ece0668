"""This process among others: its launcher, the ranks of a run, signals."""
