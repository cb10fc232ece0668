"""This process and others: its launcher, the ranks of a run, signals."""
