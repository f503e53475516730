"""Exact but faster pieces; each has a plain twin that tests compare it with."""
