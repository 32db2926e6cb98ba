"""From a sweep file to its cells, one for each run. Imports no torch."""
