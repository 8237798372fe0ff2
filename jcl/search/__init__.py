"""Searching the fields of a config by validation."""
