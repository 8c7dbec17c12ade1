"""Text of others, made safe to print."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

# Control characters, surrogates, line and paragraph separators, and what turns the direction of writing.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""`text` on one line of valid Unicode: what would break the line, or paint over it, stands as an escape.

    Args:
        text: perhaps a file's name, in which a surrogate stands for a byte that is not UTF-8.

    Example:
        >>> print(printable("a\n\x1b[31mcaf\udce9"))
        a\n\x1b[31mcaf\xe9
    """
    return _UNSAFE.sub(_escaped, text)


def reason(error: BaseException) -> str:
    """Why something failed: the first line of what the error says."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "allow_pickle" not in line:
        return line
    known = line.startswith("Object arrays")  # NumPy takes for a pickle whatever it does not know
    return f"it {'holds' if known else 'is damaged, or holds'} Python objects, which are not loaded"


def printable_lines(text: str) -> str:
    """`printable` of each line."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(text: str, most: int) -> str:
    """The beginning of `text`, and that there is more."""
    return text if len(text) <= most else f"{text[:most]}..."


def counted(count: float, one: str, more: str | None = None) -> str:
    """`count` of something, in the singular where it is one; `more` is the plural if that is not `one` with an s.

    Example:
        >>> counted(1, "step"), counted(1.5, "epoch"), counted(2, "entry", "entries")
        ('1 step', '1.5 epochs', '2 entries')
    """
    return f"{count:.15g} {one if count == 1 else more or one + 's'}"


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()
