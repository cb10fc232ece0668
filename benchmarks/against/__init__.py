"""Two checkouts measured against each other: their processes alternate block by block."""
