"""What is true on this host: probes and reservations."""
