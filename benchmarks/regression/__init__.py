"""Results held against each other: two of them, and all of a folder over time."""
