"""Directions and their evidence: scenario sets, fitting, calibration, the vector file."""
