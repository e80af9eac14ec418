"""Reference pictures and what image encoders return for them: image, crop, encoder, faces, embeddings."""
