"""What holds for every test.

Hypothesis times nothing, since a busy machine is no bug. Ctrl-C reaches the programs that are
started even where the tests were put in the background: a shell without job control has those
ignore it, and what they start inherits that.
"""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
