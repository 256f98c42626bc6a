"""What reading a published file raises."""

from typing import final


@final
class FileError(ValueError):
    """A file cannot be read; one line that says why, and what to do about it.

    Readers raise it without the file's name, which `files.read` puts in front.
    """
