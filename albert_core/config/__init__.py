"""What a run is told: its keys, their types, the files that they are read from."""
