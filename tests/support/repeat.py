"""What stands in for a CUDA graph where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Repeat:
    """Records without executing, and repeats by running anew into one result tensor, as a graph does."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def warm_up(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.events.append("warm up")
        return run()

    def capture(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.events.append("capture")
        result: list[torch.Tensor] = []

        def replay() -> torch.Tensor:
            self.events.append("replay")
            if not result:
                result.append(run())
            else:
                result[0].copy_(run())
            return result[0]

        return replay
