"""What the groups of checks share."""
