"""A run: device, folder, log, signals, checkpoint, guards."""
