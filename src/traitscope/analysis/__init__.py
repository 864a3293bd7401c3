"""Questions asked of captures: pure functions from arrays to arrays."""
