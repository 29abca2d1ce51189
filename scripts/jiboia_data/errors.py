"""The errors that end a program, with the exit codes that the C++ programs use."""


class PrepareError(Exception):
    exit_code = 1


class UsageError(PrepareError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class DataError(PrepareError):
    """The input, or what an earlier run left behind, is not what it should be."""

    exit_code = 3
