"""From a command line to a finished run: settings, domains, networks, training, output folder."""
