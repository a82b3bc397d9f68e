"""What training and evaluation read: one cached corpus whatever the source, labelled sets, and the batch stream."""
