"""The doors: one script per stage. A script reads flags, calls rooms in order and prints; nothing imports a script."""

import os

# OpenMP reads this when torch is imported, so it is set before. Threads that wait for each other must sleep, not spin:
# with one other busy process on two cores a training step took 4 to 10 s spinning and 1.0 to 1.7 s sleeping.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
