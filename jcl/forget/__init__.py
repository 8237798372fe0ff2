"""Forgetting: chosen examples are taken out of what a run keeps."""
