"""From weights to use: a classifier fitted on a labelled set, kept with all that it needs, and asked about new images."""
