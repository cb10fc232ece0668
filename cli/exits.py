"""The exit codes of every command."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0
    #: The run or the measurement failed.
    FAILED = 1
    #: The input can't be used.
    UNUSABLE = 2
    #: Stopped by the user or a scheduler; a run can be resumed.
    STOPPED = 130
