"""The contract of a backend as checks that can fail: ``isotrain conformance --backend NAME``.

Each check holds a device to one clause, and says which when it doesn't. The rooms with checks: `device` (placing,
fences, generators, counters), `operations` (against float64), `encoder` (against `kernels/reference.py`), `training`
(steps against cpu), `rates` (how fast each part is). `catalogue` lists them all. `run` starts a process of `worker`,
which opens the backend and runs one check after the other, and replaces it (`process`) if a check ends it. `table`
shows a result. `test_conformance` runs the checks as tests, `doctor` a few of them on every backend.
"""
