"""The questions that a run is made to answer: each reads a run directory and gives an ``Answer``."""
