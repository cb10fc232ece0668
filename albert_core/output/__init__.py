"""The output of a run during training: log, progress, live view, charts, trackers."""
