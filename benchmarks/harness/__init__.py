"""Measuring: the plan, worker processes, the clock, statistics, the machine's own limits."""
