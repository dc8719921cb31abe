"""Settings of an experiment: types of fields, the fields that experiments share, presets, and how flags fill them."""
