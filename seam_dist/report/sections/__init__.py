"""The sections of the report, each a function that returns its HTML from what has been read of the runs."""
