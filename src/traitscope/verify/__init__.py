"""Proving a run's stored numbers by a replay that shares no code with what captured them."""
