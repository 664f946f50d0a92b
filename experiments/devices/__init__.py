"""Training on several devices, and with several processes."""
