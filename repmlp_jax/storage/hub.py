"""Models on the Hugging Face hub: `hf://OWNER/NAME`, or `hf://OWNER/NAME@REVISION`."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from repmlp_jax.extras import name_extra

logger = logging.getLogger("repmlp_jax")

ADDRESS = re.compile(r"hf:/{1,2}")  # Path turns hf:// into hf:/
MODEL = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>\S+))?")
SECONDS = 10  # to wait for an answer


def is_on_hub(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address on the hub."""
    return isinstance(path, str | os.PathLike) and ADDRESS.match(os.fspath(path)) is not None


def repository_of(address: str | os.PathLike[str]) -> tuple[str, str | None]:
    """OWNER/NAME and the revision, which may be None, of an address with or without `hf://`.

    Raises:
        ValueError: if it is not one.
    """
    match = MODEL.fullmatch(ADDRESS.sub("", os.fspath(address), count=1).rstrip("/"))
    if not match:
        raise ValueError(f"{address} is not a model of the hub: it must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return match["repository"], match["revision"]


def download(address: str | os.PathLike[str], files: Sequence[str]) -> Path:
    """Downloads files of a repository into the hub's cache, and returns their folder, which nobody may write to.

    What is in the cache is not downloaded again, and serves if the hub does not answer.

    Args:
        address: `hf://OWNER/NAME`; a branch, tag or commit may follow behind an `@`.
        files: their names.

    Raises:
        ValueError: if the address is not one.
        ImportError, OSError: as `asking`.
    """
    repository, revision = repository_of(address)
    with asking(repository) as hub:
        unreachable: Exception | None = None
        try:  # A download would try for minutes.
            hub.HfApi().model_info(repository, revision=revision, timeout=SECONDS)
        except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError):
            raise
        except Exception as error:  # of the hub, its client, or the one for HTTP
            unreachable = error
        for file in files:
            options = dict(revision=revision, local_files_only=unreachable is not None)
            try:
                path = Path(hub.hf_hub_download(repository, file, **options))
            except hub.errors.LocalEntryNotFoundError as error:
                raise unreachable or error from error
            revision = path.parent.name  # the commit, so that all files are of the same
    if unreachable:
        reason = _reason(unreachable)
        logger.warning("hf://%s is as it was downloaded before: the hub cannot be reached (%s)", repository, reason)
    return path.parent


@contextlib.contextmanager
def asking(repository: str) -> Iterator[ModuleType]:
    """Yields the module huggingface_hub; what goes wrong with the hub is one clear error.

    Raises:
        ImportError: if huggingface_hub is not installed.
        FileNotFoundError: if there is no such repository or revision, or it lacks a file.
        PermissionError: if the hub does not let this user in.
        ConnectionError: if the hub does not answer, or answers with another error.
    """
    with name_extra():
        import huggingface_hub
        from huggingface_hub import constants, errors
    place = f"{constants.ENDPOINT}/{repository}"
    log_in = "`hf auth login` logs in"
    try:
        yield huggingface_hub
    except errors.GatedRepoError as error:
        raise PermissionError(f"{place} is only for those whom its owner lets in: ask there; {log_in}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"there is no {place}, or it is private; {log_in}") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{place} has no such revision") from error
    except errors.RemoteEntryNotFoundError as error:
        raise FileNotFoundError(f"{place} does not hold a model that `repmlp-jax push` wrote") from error
    except Exception as error:  # of the hub, its client, or the one for HTTP
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise PermissionError(f"{place} may not be written to with this token; {log_in}") from error
        raise ConnectionError(f"{place} cannot be reached: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
