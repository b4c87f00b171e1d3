"""forkjoin_gcp: a fork-join queue for Google Cloud."""
