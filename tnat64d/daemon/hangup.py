"""SIGHUP: both files are read again, as often as somebody asks for it.

Owns that a reload which fails is told and the next one is still heard. Refuses to own what is reloaded, and the
signal's handler, which has to be there before anything that can be reloaded is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tnat64d.errors import Tnat64Error

_log = logging.getLogger(__name__)


async def reload_when(hangup: asyncio.Event, reload: Callable[[], Awaitable[object]]) -> None:
    """Call `reload` whenever `hangup` is set. It raises Tnat64Error if it fails, and has changed nothing then."""
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            await reload()
        except Tnat64Error as error:
            _log.error("not reloaded, everything stays as it was:\n%s", error)
