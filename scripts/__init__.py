"""The doors: one script per stage. A script reads flags, calls rooms in order and prints; nothing imports a script."""
