"""What a corpus is worth: duplicates, redundancy, burnt-in text, and whether an evaluation set slipped into it."""
