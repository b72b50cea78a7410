"""Measures pgqueue on a throwaway or a given server. Nothing here runs in production, and nothing in production imports it."""
