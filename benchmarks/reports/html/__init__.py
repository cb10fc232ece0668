"""Results as one HTML page: what was found (`loading`), what it says (`sections`), how it is drawn (`page`, `png`)."""
