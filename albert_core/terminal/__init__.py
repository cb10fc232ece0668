"""The way to a terminal: texts from outside cleaned and shortened, consoles, the program's own name."""
