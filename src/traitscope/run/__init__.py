"""A night of work: engine, shards, commit and resume, progress, summary."""
