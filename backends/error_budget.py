"""What an arithmetic costs on the host: how a backend names its own to `isotrain parity`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ErrorBudget:
    """A backend of the host that stands for an arithmetic: what it costs against float64 is what a device may cost.

    `options` are the backend's own, as `get_backend` takes them for its name. `draws`: whether each device number of
    the backend is another draw of the same arithmetic's rounding. `compute`: what products take, where that isn't
    `dtype` but wider. `emulated`: whether it emulates a card's arithmetic, which its label says.
    """

    backend: str
    dtype: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draws: bool = True
    head_dtype: str = "float32"
    compute: str = ""
    emulated: bool = False

    @property
    def label(self) -> str:
        chosen = [f"{key} {value}" for key, value in sorted(self.options.items()) if value != "emulated"]
        if self.head_dtype != "float32":
            chosen.append(f"head {self.head_dtype}")
        if not self._narrow:
            chosen.insert(0, f"computed in {self.compute}")
        name = f"{self.backend} (emulated)" if self.emulated else self.backend
        return f"{name} {self.dtype}" + (f" ({', '.join(chosen)})" if chosen else "")

    @property
    def _narrow(self) -> bool:
        """Whether products take `dtype` itself."""
        return self.compute in ("", self.dtype)

    def settings(self, draws: int) -> list[list[str]]:
        """What a configuration is set to for each of `draws` draws (one, where another would be the same)."""
        common = [f"dtype={self.dtype}", f"strict_dtype={str(self._narrow).lower()}"]
        common += [f"head_dtype={self.head_dtype}", "kernel=auto", "layout=auto"]
        common += [f"{self.backend}.{key}={value}" for key, value in self.options.items()]
        names = [f"{self.backend}:{draw}" for draw in range(draws)] if self.draws else [self.backend]
        return [[f"backend={name}", *common] for name in names]
