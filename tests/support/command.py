"""What a test of the command line looks at: the exit code and both streams."""

from __future__ import annotations

from collections.abc import Callable

# Runs a command: (exit code, stdout, stderr).
Invoke = Callable[..., tuple[int, str, str]]


def one_line_error(result: tuple[int, str, str], *expected: str) -> None:
    """Asserts exit code 2 and one line on stderr, without a traceback, that holds every part of `expected`."""
    code, out, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, (out, err)
    assert len(lines) == 1, err
    assert lines[0].startswith("isotrain: error: ")
    for part in expected:
        assert part in lines[0], lines[0]
    assert "Traceback" not in err
