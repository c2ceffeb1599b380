"""Sweeps for launch.sweep: each file says which fields change, and stands on a config given beside it."""
