"""Results as tables, CSV, Markdown and HTML."""
