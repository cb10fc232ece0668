"""A user's own module with its batches and its loss: loaded, checked, and trained by one step."""
