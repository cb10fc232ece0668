"""The error budget that a backend names for `isotrain parity`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ErrorBudget:
    """A host backend that models an arithmetic. A device may differ from float64 by as much as this backend does.

    Attributes:
        options: The backend's own section, as in the `options` of `get_backend`.
        draws: Whether each device number of the backend is another random draw of the same arithmetic's rounding.
        compute: The dtype of products, if it is wider than `dtype`.
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

    def names(self, draws: int) -> list[str]:
        """The backends that draw `draws` times; a single one if all draws would be equal."""
        return [f"{self.backend}:{draw}" for draw in range(draws)] if self.draws else [self.backend]

    @property
    def narrow(self) -> bool:
        """Whether products are computed in `dtype` itself."""
        return self.compute in ("", self.dtype)
