"""What `make bench` measures: this package beside the 2010 protocol and the raw store.

Everything runs on this machine, against the local services of forkjoin_gcp.emulators, in one run.
"""
