"""One file a data set, and what reads folders, tables and lists."""
