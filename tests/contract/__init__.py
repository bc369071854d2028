"""Every plugin that exists, run through the same tests: a new one is tested by existing."""
