"""Files of the Hugging Face hub, which users name by hf:NAME."""

from collections.abc import Sequence

HUB = "hf:"


def snapshot(
    name: str,
    where: str,
    *,
    kind: str,
    patterns: Sequence[str],
    packages: str,
    local: str,
    downloads: bool = True,
) -> str:
    """Return the folder of this machine with files of the hub.

    Args:
        name: hf:NAME.
        where: its name at the start of messages, such as "config.data.name='hf:a/b'".
        kind: "dataset" or "model".
        patterns: of the files that are wanted.
        packages: what to install for it, for messages.
        local: what to give where there is no network, for messages.
        downloads: whether to download files that are missing.

    Raises:
        ValueError: if huggingface_hub is missing.
        FileNotFoundError: if they are not there and `downloads` is False.
        ConnectionError: if they cannot be downloaded.
    """
    try:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"{where} needs the hub: pip install {packages}") from error
    try:
        return snapshot_download(
            name.removeprefix(HUB),
            repo_type=kind,
            allow_patterns=list(patterns),
            local_files_only=not downloads,
        )
    except Exception as error:  # of the hub, of its network library, or of a missing file
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        if not downloads:
            raise FileNotFoundError(f"{where} is not downloaded ({reason})") from error
        raise ConnectionError(
            f"{where}: the download failed ({reason}); check the name and the network, or give "
            f"{local}"
        ) from error
