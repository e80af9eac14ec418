"""How the embedded model is made: characters → drawings → captions → the trainings of its parts."""
