"""Other programs' ways to do the same, each in a process and an environment of its own.

Nothing here but NumPy is shared with them: a worker runs where this project is not installed.
"""
