"""The storm: what users, schedulers, disks and strangers' files do to a run, done on purpose and many times.

``make storm`` runs all of it; ``python -m storm --help`` lists the options. Every try is judged, and one that ends
badly prints the command that repeats it.
"""
