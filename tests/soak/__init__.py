"""Stress tests that take hours: killed runs, full disks, damaged files, random settings. See `__main__`."""
