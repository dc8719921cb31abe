"""Runs that build on one another: what is up to date, tables of rows, and their statistics."""
