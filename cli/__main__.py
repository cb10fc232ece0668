"""``python -m isotrain.cli``: the command line where a module is asked for, as torchrun's ``-m`` does."""

from __future__ import annotations

from .main import main

main()
