"""What an image is: modalities, readers for medical formats, and phantoms made from physics."""
