"""The doors: one script per stage. A script reads flags, calls rooms in order and prints; nothing imports a script."""

import os

# GNU OpenMP reads this when torch is imported, so it is set before: how long a thread spins before it sleeps while it
# waits for the others. A training step at depth 4 on two cores, alone and beside another busy process: 350 ms and 3.9 s
# with the default of 300,000, 410 ms and 1.3 s with this, 610 ms and 1.1 s with 1,000.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
