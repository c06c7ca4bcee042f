"""Merges by several processes, on one machine or many, that each write some weight files."""
