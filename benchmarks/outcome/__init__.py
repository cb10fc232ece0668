"""What was measured, as one typed model: built, judged, written, read."""
