"""Errors that a user can act on, one kind per exit code of the command line."""


class UserError(Exception):
    """A failure whose cause and cure can be said in one line per problem, without a traceback.

    Args:
        problems: One complete sentence each: where (file and line, or file and offset), what was
            found, what is allowed, what to do.
    """

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class RunError(UserError):
    """The work failed while running: a non-finite loss, a full disk, a lost worker."""

    exit_code = 1


class SpecError(UserError):
    """The spec or the command line is wrong."""

    exit_code = 2


class DataError(UserError):
    """A record, an image or an annotation file is wrong or missing."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint cannot be read, or does not fit the model."""

    exit_code = 4


class ExportError(UserError):
    """An exported model cannot be made or does not agree with its source."""

    exit_code = 5


class ClusterError(UserError):
    """The Ray cluster cannot be reached or cannot give what is asked."""

    exit_code = 6
