"""Bundles: what ships, how it is checked, how it is used."""
