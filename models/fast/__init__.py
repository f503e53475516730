"""Exact but faster pieces; tests compare each with its plain counterpart."""
