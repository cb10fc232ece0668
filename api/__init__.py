"""The commands as Python functions, with results that print as tables and show as pages in a notebook."""
