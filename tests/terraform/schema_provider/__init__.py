"""A stand-in for a Terraform provider, where the real one cannot be downloaded.

`terraform validate` and `terraform test` want the provider's program, if only for its schema. The
prebuilt CDK Terrain packages on PyPI (`cdktn-provider-google`) are generated from the real schema
and carry it attribute by attribute. `packages` reads it back out of one, `mirror` lays it where
terraform looks for providers, and `server` serves it over the plugin protocol.

What it shows: unknown or misspelt types, arguments and blocks, missing ones, wrong types, blocks
too many or too few, references to what does not exist, values outside a validated enum. What it
does not: anything the provider decides in code (ranges, patterns, arguments that exclude each
other) and anything the API decides. It plans, applies and reads nothing: those calls are refused,
so a test has to mock the provider.

A lock file made with it holds its checksum, which a real provider has not: never commit one.
"""
