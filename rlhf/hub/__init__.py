"""Sharing a run: its model card, and later its way to the Hub."""
