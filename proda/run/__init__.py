"""One run: its folder and record, data and networks as the flags ask for them, a stage and how it is trained."""
