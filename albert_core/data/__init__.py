"""From a data set's name to its texts and labels."""
