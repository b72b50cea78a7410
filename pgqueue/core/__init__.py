"""Nouns and decisions, without I/O, clock, randomness or asyncio.

Every other room may import these modules; they import only `pgqueue.errors` and each other.
"""
