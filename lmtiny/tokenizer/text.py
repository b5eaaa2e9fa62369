"""Any text, or any bytes, without loss: what is UTF-8 becomes str, what is not stays bytes."""

import re
from collections.abc import Iterator

# "surrogateescape" (PEP 383) turns a byte 0x80..0xff that is not part of valid UTF-8 into one of these.
_STRAY = re.compile("([\udc80-\udcff]+)")


def to_bytes(text: str | bytes) -> bytes:
    """Returns the UTF-8 of `text`; lone surrogates, which have none, become the byte they escape (PEP 383) or 3 bytes.

    So a file read with errors="surrogateescape" gives its own bytes back, whatever they are.  Other lone surrogates
    (U+D800 from a broken JSON string, say) become the 3 bytes that UTF-8 would give their number ("surrogatepass").
    """
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b"".join(
            char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass") for char in text
        )


def stretches(text: str | bytes) -> Iterator[str | bytes]:
    """Yields `text` in stretches: str where its bytes are valid UTF-8, bytes where they are not.

    It depends on `to_bytes(text)` alone, not on whether that came as str or as bytes.
    """
    try:
        if isinstance(text, bytes):
            whole = text.decode()
        else:
            whole = text
            if not text.isascii():  # known at once
                text.encode()
    except UnicodeError:
        text = to_bytes(text)
    else:
        if whole:
            yield whole
        return
    for stretch in _STRAY.split(text.decode("utf-8", "surrogateescape")):
        if stretch:
            yield stretch.encode("utf-8", "surrogateescape") if "\udc80" <= stretch[0] <= "\udcff" else stretch
