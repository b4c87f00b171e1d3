"""For tests of what is built on this package: contract suites, in-process ports, virtual time."""
