"""The services of the cloud, on this machine."""
