"""The host NumPy: the optimizer over arrays, what it is given, its rows and its state dicts."""
