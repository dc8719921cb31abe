"""A report on training runs: one HTML file that needs neither network nor server.

``runs`` reads the folders of runs, ``curves`` their TensorBoard files, and ``predictions`` looks at the validation
images again. ``scores``, ``pseudo_labels`` and ``training`` decide what the sections say, with ``charts`` and
``texts``, and ``page`` fills the templates.
"""
