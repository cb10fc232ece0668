"""torch.compile with inductor, torch's own compiler: what it needs, and errors in one line."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from .. import UserError

# Named, since other packages may replace torch.compile's default. Tests use a backend that needs no compiler.
COMPILER = "inductor"

# A program is compiled for each shape, and batches have a few shapes only. More programs are a mistake.
MOST_PROGRAMS = 64

LONGEST_REASON = 300


def why_no_compiler(device_type: str) -> str:
    """What inductor lacks to compile for a torch device of this type, or an empty string."""
    if device_type != "cpu":
        return "" if find_spec("triton") else "inductor needs triton, which is not installed"
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"inductor needs a C++ compiler, and {compiler} is not installed"


def compiled(
    function: Callable[..., Any], instead: str, mode: str | None = None, compiler: str = ""
) -> Callable[..., Any]:
    """`function` in one program for each shape of its inputs, unless a dimension is marked as dynamic.

    Args:
        instead: What the user can do if it can't be compiled, for the end of the message.
        mode: One of torch.compile's modes.
        compiler: Another than COMPILER, by torch.compile's name for it.

    Returns:
        A function that raises UserError in the first call if `function` can't be traced or compiled.
    """
    import torch
    from torch._dynamo.exc import TorchDynamoException

    limit_programs()
    chosen = compiler or COMPILER
    program: Callable[..., Any] = torch.compile(function, backend=chosen, mode=mode, fullgraph=True, dynamic=False)

    def run(*inputs: Any) -> Any:
        try:
            return program(*inputs)
        except TorchDynamoException as error:
            raise UserError(f"torch.compile can't compile this model ({_reason(error)}); {instead}") from error

    return run


def limit_programs() -> None:
    """Lets torch compile MOST_PROGRAMS programs of a function, and raise an error instead of running it eagerly."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_PROGRAMS)
    config.fail_on_recompile_limit_hit = True


def _reason(error: Exception) -> str:
    """The first line that says something, of the compiler's own error if it has one, without its last mark."""
    own = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(own).splitlines() if line.strip()]
    return (lines[0] if lines else type(own).__name__)[:LONGEST_REASON].rstrip(".:")


def compilations() -> int:
    """Frames and graphs traced by torch.compile, and graphs compiled by inductor.

    With fullgraph=True torch counts no frame, and a late backward graph is traced by nothing that counts.

    torch._dynamo is not imported for this, which takes seconds: if nobody has imported it, nothing was compiled.
    """
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return 0
    traced = utils.counters["frames"]["total"] + utils.counters["stats"]["unique_graphs"]
    return int(traced) + len(utils.compilation_time_metrics.get("compile_fx_inner", ()))
