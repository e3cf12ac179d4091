"""For all tests: signals mean what they mean on a terminal, wherever the tests were started from."""

import signal

# `nohup` and a shell's `&` start a process with these ignored, which every process of the tests would inherit; the
# launcher, rightly, leaves a signal ignored that was.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
