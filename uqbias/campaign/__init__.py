"""Campaigns: configuration, ledger, rounds."""
