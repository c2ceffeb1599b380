"""Peers that run on torch for CPUs."""

from benchmarks.peers import allow_missing_operators

allow_missing_operators()
