"""The pure part: values in, values out. No socket, asyncio, os, time or logging; time is an argument."""
