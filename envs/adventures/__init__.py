"""Text adventures of many turns, exactly graded: generated ones (Inform, TextWorld, TextWorld-Express) and story files of one's own."""
