"""What lies at a path: a file, or something that only has the name of one."""

import stat

from errors import FileError
from files.paths import AnyPath, bucket_errors, in_bucket

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_file(path: AnyPath, where: str) -> None:
    """Raise FileError unless `path` is a regular file, a link to one, or an object in a bucket.

    Opening a pipe waits until another program writes to it, and a device may never end. So call
    this before a file is opened that a user has named.

    Args:
        path: what to look at; "~" is not expanded.
        where: its name at the start of the message, such as "config.eval.reference='a.npz'".
    """
    if in_bucket(path):
        with bucket_errors(path):
            if path.is_dir():
                raise FileError(f"{where}: it is a folder instead of a file. Check the path")
            if not path.exists():
                raise FileError(f"{where}: there is no such file. Check the path")
        return
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileError(f"{where}: there is no such file. Check the path") from None
    except OSError as error:
        raise FileError(f"{where}: it cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a zero byte in the name
        raise FileError(f"{where}: it is no valid path ({error})") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise FileError(f"{where}: it is {kind} instead of a file. Check the path")
