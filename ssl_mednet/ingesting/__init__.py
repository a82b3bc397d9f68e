"""Ingest: whatever a user holds becomes a corpus, every good image once, every bad file named."""
