"""One file per job; a new experiment is a copy of one of these."""
