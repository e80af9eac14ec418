"""What each part of the embedded model is trained to do."""
