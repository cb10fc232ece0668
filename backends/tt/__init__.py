"""Tenstorrent cards, and their arithmetic emulated on the host."""
