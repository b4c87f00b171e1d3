"""The whole of forkjoin_gcp on this machine: thousands of URLs in, each fetched exactly once."""
