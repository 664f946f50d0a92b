"""Training on several devices, and with several processes; what they compile is cached."""
