"""The public image sets that the two corpora are made of: facts, licences, selections, plans. No image is read here."""
