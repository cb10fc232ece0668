"""The configuration of a run: its keys, their types, and the files they are read from."""
