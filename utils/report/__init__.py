"""Everything that a run says about its samples."""
