"""What the demos raise."""


class DemoError(Exception):
    """The demo cannot run; the message is for the person who started it."""


class DatasetError(DemoError):
    """A file of questions or text cannot be used; the message names the file and the line."""
