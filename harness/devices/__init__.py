"""One file for each family of devices."""
