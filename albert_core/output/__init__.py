"""What a run shows while it trains: log, progress, live view, charts, trackers."""
