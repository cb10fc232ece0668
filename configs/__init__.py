"""Packaged configurations: `isotrain train NAME` finds ``NAME.yaml`` here."""
