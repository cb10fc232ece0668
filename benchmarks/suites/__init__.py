"""pytest-benchmark suites: single kernels and steps on every backend that works here (`make bench-suite`).

They answer "did this change make that kernel slower?" on one machine; figures that are to be quoted come from
`isotrain bench`, whose processes, fence and validity they don't have.
"""
