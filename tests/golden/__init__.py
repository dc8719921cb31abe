"""Equality with the published system: every array under ``data/`` meets an assertion here."""
