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
    `dtype` but wider.
    """

    backend: str
    dtype: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draws: bool = True
    head_dtype: str = "float32"
    compute: str = ""

    @property
    def label(self) -> str:
        chosen = [f"{key} {value}" for key, value in sorted(self.options.items()) if value != "emulated"]
        if self.head_dtype != "float32":
            chosen.append(f"head {self.head_dtype}")
        if not self.narrow:
            chosen.insert(0, f"computed in {self.compute}")
        return f"{self.backend} {self.dtype}" + (f" ({', '.join(chosen)})" if chosen else "")

    @property
    def narrow(self) -> bool:
        """Whether products take `dtype` itself."""
        return self.compute in ("", self.dtype)
