"""Shared plumbing: configuration, runs, losses, selection rules, metrics and files."""
