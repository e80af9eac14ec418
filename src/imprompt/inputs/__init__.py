"""From a reference picture to what the image encoder returns: image, crop, encoder, faces, embeddings."""
