"""From a sweep to its records: expansion (torch-free), one run, its record, memory and the GPU lease."""
