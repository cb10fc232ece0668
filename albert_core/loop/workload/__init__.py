"""Runs of a user's own workload, as the loop trains them."""
