"""Generated lemmas, each with a known proof: propositional logic, natural numbers, lists."""
