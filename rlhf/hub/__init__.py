"""Sharing on the Hub: lineage, push, and what is pushed."""
