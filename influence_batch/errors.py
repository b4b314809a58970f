"""The two ways an audit ends early. Both carry a message for the person who ran it."""


class InputError(Exception):
    """The config or the data cannot be audited as they are (exit code 2).

    The message names the file, column, row or key, what was found and what would be accepted.
    """


class MissingFileError(InputError):
    """A file is not there, or may not be read, for the process that opens it.

    On a cluster that can be a matter of the worker alone.
    """


class RunError(Exception):
    """The audit could not be completed on input that is valid (exit code 1).

    The message says what happened and what to change.
    """


class ClusterError(RunError):
    """Workers or their scheduler failed, not the audit: the run can be taken up again."""
