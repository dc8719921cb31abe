"""Helpers that are independent of the method: atomic files, locks, options and errors."""
