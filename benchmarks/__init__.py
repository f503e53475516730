"""Measurements of this project against a naive implementation of the same method."""
