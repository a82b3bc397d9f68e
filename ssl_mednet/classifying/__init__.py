"""From weights to use: a classifier made from labelled images, kept with all it needs, asked about new images."""
