"""The embedded default model: its checkpoint, its training text, and the scripts that train and measure it."""
