"""Whether two devices train alike: traces of real runs, judged against a float64 one (rules 12 to 15 of measuring)."""
