"""What is shown of each kind of result, as blocks: the same for a terminal, text files and the page."""
