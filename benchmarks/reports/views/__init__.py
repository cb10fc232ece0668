"""Each kind of result as blocks, for the terminal, text files and the page."""
