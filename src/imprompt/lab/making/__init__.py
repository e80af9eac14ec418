"""How the embedded model is made: characters → drawings → captions → the parts' trainings."""
