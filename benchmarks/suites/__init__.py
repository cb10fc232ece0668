"""pytest-benchmark suites: single kernels and steps on every backend that works here (`make bench-suite`).

They show on one machine whether a change made a kernel slower. Figures to quote come from `isotrain bench`, which adds
fresh processes, fences and validity checks.
"""
