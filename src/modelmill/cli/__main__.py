"""`python -m modelmill.cli`."""

from contextlib import suppress

from modelmill.cli import main

with suppress(BrokenPipeError):
    main()
