"""Terminal output: external texts cleaned and shortened, consoles, the program's own name."""
