"""The contract of a backend as checks that can fail: ``isotrain conformance --backend NAME``.

Each check holds a device to one clause, and says which when it doesn't. The rooms: `device` (placing, fences,
generators, counters), `operations` (against float64), `encoder` (against `kernels/reference.py`), `training` (steps
against cpu), `rates` (how fast each part is).
"""
