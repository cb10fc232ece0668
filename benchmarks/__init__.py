"""Measuring: what `isotrain bench` runs, how it judges a figure, and how it shows one.

The parent process (plan, runner, results, report) needs no torch; each target is measured by a fresh worker process.
"""
