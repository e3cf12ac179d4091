"""Sizes, counts, durations and moments as people read them. Nothing else in the launcher formats these."""

from __future__ import annotations

import math
import re
import time


def size(count: float) -> str:
    """A number of bytes, such as `12.3 GB`; in decimal units, as `df -H` prints them."""
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(4, int(math.log10(count)) // 3)
    number = count / 1000**power
    return f"{number:.{0 if number >= 100 else 1}f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def short_count(number: float) -> str:
    """Three digits of a large number: `1.23 M`."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f}"


def clock(seconds: float) -> str:
    """A measured duration in seconds, to the second: `42 s`, `3:05`, `2:10:00`, `5 d 3 h`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"


def estimate(seconds: float) -> str:
    """An estimated duration, rounded up to minutes: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def time_limit(seconds: float) -> str:
    """A time limit, which is mostly a round number: `7 d`, `36 h`, `30 min`."""
    days, hours = divmod(seconds / 3600, 24)
    return f"{days:g} d" if not hours else f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"


def parse_time_limit(text: int | str) -> int:
    """Seconds of a limit as sbatch's --time takes it (sbatch(1)): `minutes`, `minutes:seconds`,
    `hours:minutes:seconds`, `days-hours`, `days-hours:minutes`, `days-hours:minutes:seconds`. Raises ValueError.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(text))
    if not match:
        raise ValueError(f"{text!r} is not a duration in Slurm's form (such as 90, 1:30:00 or 2-12:00:00)")
    days, *rest = match.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is not None:  # after days, hours come first; without them, a single number is minutes
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = numbers if len(numbers) == 3 else [0, *numbers, 0][:3]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def hours(number: float) -> str:
    """Hours of computing: `1,234.5`, `0.25`."""
    return f"{number:,.1f}" if number >= 10 else f"{number:.2g}"


def when(moment: float, now: float | None = None) -> str:
    """A moment (seconds since 1970) in local time: `14:05`, on another day `Tue 14:05`, further away the date."""
    now = time.time() if now is None else now
    then, today = time.localtime(moment), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%a %H:%M" if abs(moment - now) < 6 * 86400 else "%Y-%m-%d", then)
