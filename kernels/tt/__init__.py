"""Tenstorrent numerics without a card: number formats, the matrix unit bit for bit, and a fast form of it."""
