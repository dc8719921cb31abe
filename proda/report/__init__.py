"""A report on training runs: one HTML file that needs neither network nor server.

``runs`` reads the folders of runs, ``curves`` their TensorBoard files, ``predictions`` looks at the validation images
again, ``charts`` draws lines, and ``page`` puts the page together.
"""
