"""The numbers of the package; not those of the standard library."""

FACTOR = 3
