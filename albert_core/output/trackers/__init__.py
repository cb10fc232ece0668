"""Services and files that a run's figures also go to: one class per tracker, found by name (`registry`)."""
