"""The exception for mistakes that a user can correct."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something outside the code is wrong: a parameter, a file, the disk, the network.

    The message is one paragraph that names the file or parameter, what was found, what was
    expected and what to do. The command line prints it without a traceback and exits with 1.
    """


def unknown_name(what: str, found: str, known: Iterable[str], *, where: str = "") -> UserError:
    """Return an error for a name that is not in a registry, with the closest known name."""
    known = sorted(known)
    matches = difflib.get_close_matches(found, known, n=1, cutoff=0.4)
    suggestion = f" Did you mean '{matches[0]}'?" if matches else ""
    place = f"{where}: " if where else ""
    return UserError(f"{place}unknown {what} '{found}'.{suggestion} Known: {', '.join(known)}.")
