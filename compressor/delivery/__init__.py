"""Bringing a signed bundle to devices: over ssh, into a folder, as an OCI image layout; one after the other."""
