"""From a command line to a running experiment, in one process or several."""
