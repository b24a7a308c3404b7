"""Everything that the command line shows: tables, live views, JSON, and the keys that a live view understands."""
