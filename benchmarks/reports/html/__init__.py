"""Results as one HTML page: what was found (`loading`), what each section says (`of_*`), the page (`page`)."""
