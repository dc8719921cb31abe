"""Helpers that are independent of the method: errors, atomic files, the lock of a folder, progress and words."""
