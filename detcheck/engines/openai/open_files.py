"""The number of files, and so of connections, that this process may open."""

from __future__ import annotations

from detcheck.errors import UsageError

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

SPARE_FILES = 64
"""Files that are open beside the connections of a trial."""


def allow_open_files(number: int) -> None:
    """Let this process open `number` files; raise UsageError if the system forbids it."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= number:
        return
    if hard != resource.RLIM_INFINITY and hard < number:
        raise UsageError(
            f"{number - SPARE_FILES} requests in flight need {number} open files, and the system "
            f"allows {hard}: raise it by `ulimit -n {number}`, or ask for smaller batches."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
